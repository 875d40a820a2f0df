"""Calibration: it learns the truth from edges that were put to the test, and from nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.policy.plus.bands import WARM_UP_TO, Band, band, bands
from adaserve.policy.plus.calibration import Calibration
from adaserve.policy.plus.parts import LearningConstants
from adaserve.step import Drafted
from adaserve.tree import CandidateTree, Source, edge_prob
from tests.oracles.calibration import CountedPlainly
from tests.strategies import candidate_trees

LEARNING = LearningConstants()


def star(prob: list[float]) -> CandidateTree:
    """One request, children of the root with these probabilities."""
    f = torch.tensor([prob], dtype=torch.float64)
    ids = torch.zeros_like(f, dtype=torch.int64)
    return CandidateTree(torch.arange(len(prob))[None], ids - 1, ids + 1, f, ids)


COLD = (0.0,) * 40
"""Everybody at temperature 0."""


def believed(calibration: Calibration, candidates: CandidateTree, temperature: float = 0.0) -> torch.Tensor:
    """f of every candidate, [n, N], where everybody draws at one temperature."""
    return calibration(candidates, torch.full((len(candidates.token),), temperature, dtype=torch.float64))


def steps(rng: np.random.Generator, count: int, truth, source: Source = Source.MODEL) -> list[Drafted]:
    """Steps of 40 chains of two; a child is only reached where its parent was accepted."""
    made = []
    for _ in range(count):
        said = rng.random((40, 2))
        kept = rng.random((40, 2)) < truth(said)
        kept[:, 1] &= kept[:, 0]
        reached = np.stack([np.ones(40, dtype=bool), kept[:, 0]], 1)
        f = said.cumprod(1)
        flat = (x.ravel().tolist() for x in (f, said, reached, kept))
        request = np.repeat(np.arange(40), 2).tolist()
        made.append(Drafted(tuple(request), (1, 2) * 40, (int(source),) * 80, *map(tuple, flat)))
    return made


def test_the_truth_is_found_without_censoring_bias() -> None:
    """A draft that is surer than it should be: what it says p is accepted p squared of the time, at either depth."""
    calibration = Calibration(LEARNING, coupled=True)
    for drafted in steps(np.random.default_rng(0), 500, lambda p: p**2):
        calibration.learn(drafted, COLD)
    said = [0.25, 0.35, 0.55, 0.75, 0.85]
    found = torch.cat([believed(calibration, star([p]))[0] for p in said])
    np.testing.assert_allclose(found, np.square(said), atol=0.03)
    second = CandidateTree(
        *(torch.tensor([x]) for x in ([0, 1], [-1, 0], [1, 2])), torch.tensor([[0.9, 0.5]]).double(), torch.zeros(1, 2).long()
    )
    f = believed(calibration, second)[0]
    assert abs(f[1] / f[0] - (0.5 / 0.9) ** 2) < 0.04, "counting children of refused parents would pull this down by half"


def test_sources_are_told_apart() -> None:
    calibration = Calibration(LEARNING, coupled=True)
    for drafted in steps(np.random.default_rng(1), 100, lambda p: 0.1 + 0 * p, Source.NGRAM):
        calibration.learn(drafted, COLD)
    model, lookup = calibration.table()[Band.GREEDY][[0, 6]]
    assert abs(model[7] - 0.45) < 1e-6 and lookup[7] < 0.15


def test_a_draft_is_believed_before_anything_was_seen() -> None:
    said = [0.75, 0.5, 0.25, 0.15]
    np.testing.assert_allclose(believed(Calibration(LEARNING, coupled=True), star(said))[0], said, atol=0.05)


@given(candidates=candidate_trees())
def test_f_never_rises_along_a_path_and_padding_stays(candidates: CandidateTree) -> None:
    calibration = Calibration(LEARNING, coupled=True)
    for drafted in steps(np.random.default_rng(2), 32, lambda p: 1 - p):  # the worst order there is
        calibration.learn(drafted, COLD)
    f = believed(calibration, candidates)
    assert torch.equal(f > 0, candidates.path_prob > 0)
    if f.numel():
        above = torch.cat([torch.ones(f.shape[0], 1).double(), f], 1).gather(1, candidates.parent + 1)
        assert (f <= above + 1e-12).all()


def test_a_second_choice_is_not_a_first_one() -> None:
    """First children of 0.45 are always right, second ones never: neither speaks for the other."""
    pair = Drafted((0, 0), (1, 1), (0, 0), (0.45, 0.45), (0.45, 0.45), (True, True), (True, False))
    calibration = Calibration(LEARNING, coupled=True)
    for _ in range(320):
        calibration.learn(pair, COLD)
    first, second = believed(calibration, star([0.45, 0.45]))[0].tolist()
    assert first > 0.85 and second < 0.15


def pair_of_children(said: tuple[float, float], sources: tuple[Source, Source]) -> CandidateTree:
    """One request whose root has two children."""
    ids = torch.zeros(1, 2, dtype=torch.int64)
    source = torch.tensor([[int(s) for s in sources]])
    return CandidateTree(torch.tensor([[0, 1]]), ids - 1, ids + 1, torch.tensor([said], dtype=torch.float64), source)


def test_no_later_child_is_believed_more_than_the_first() -> None:
    """First children never come, second ones always: the first is verified before the second all the same."""
    seen = Drafted((0, 0), (1, 1), (0, 0), (0.45, 0.45), (0.45, 0.45), (True, True), (False, True))
    calibration = Calibration(LEARNING, coupled=True)
    for _ in range(320):
        calibration.learn(seen, COLD)
    first, second = believed(calibration, star([0.45, 0.45]))[0].tolist()
    assert second == first < 0.15
    assert calibration.edges(seen, COLD) == [first, second]


def test_a_child_of_look_up_is_not_a_later_one() -> None:
    """Verified without the model's child or beside it, it is counted and looked up in the same cell, and not held back."""
    alone = Drafted((0,), (1,), (int(Source.NGRAM),), (0.45,), (0.45,), (True,), (True,))
    calibration = Calibration(LEARNING, coupled=True)
    for _ in range(320):
        calibration.learn(alone, COLD)
    model, lookup = believed(calibration, pair_of_children((0.45, 0.45), (Source.MODEL, Source.NGRAM)))[0].tolist()
    assert lookup > 0.85 and abs(model - 0.45) < 1e-6
    both = Drafted((0, 0), (1, 1), (0, 1), (0.45, 0.45), (0.45, 0.45), (True, True), (False, True))
    assert calibration.edges(both, COLD) == [model, lookup]
    first, second = believed(calibration, pair_of_children((0.45, 0.30), (Source.NGRAM, Source.MODEL)))[0].tolist()
    assert first > 0.85 and abs(second - believed(calibration, star([0.30]))[0, 0]) < 1e-9, (
        "the model's own first child stays a first one"
    )


@given(candidates=candidate_trees())
def test_verified_nodes_and_candidates_are_looked_up_alike(candidates: CandidateTree) -> None:
    """If all are verified, what is expected of the one is what was expected of the other."""
    calibration = Calibration(LEARNING, coupled=True)
    for drafted in steps(np.random.default_rng(3), 32, lambda p: p**3):
        calibration.learn(drafted, COLD)
    edge, f = edge_prob(candidates), believed(calibration, candidates)
    for i in range(f.shape[0]):
        column = (candidates.path_prob[i] > 0).nonzero()[:, 0]
        parent, depth = candidates.parent[i][column], candidates.depth[i][column]
        before = torch.where(parent >= 0, candidates.path_prob[i][parent], 1.0)
        families = {(p, d) for p, d in zip(before.tolist(), depth.tolist(), strict=True)}
        if len(families) < len(set(parent.tolist())):
            continue  # two parents of one depth and equal f cannot be told apart from outside
        zeros, yes = (0,) * len(column), (True,) * len(column)
        seen = (depth, candidates.source[i][column], candidates.path_prob[i][column], edge[i][column])
        found = calibration.edges(Drafted(zeros, *(tuple(x.tolist()) for x in seen), yes, yes), COLD)
        above = torch.where(parent >= 0, f[i][parent], 1.0)
        np.testing.assert_allclose(found, f[i][column] / above, rtol=1e-6)


def test_two_temperatures_are_learnt_apart() -> None:
    """At temperature 0 more comes than is said, at 1 less; both in the same steps, none the worse for the other."""
    rng = np.random.default_rng(4)
    half = np.repeat([True, False], 20)[:, None]
    for coupled in (True, False):
        calibration = Calibration(LEARNING, coupled)
        for drafted in steps(rng, 400, lambda p: np.where(half, p**0.5, p**2)):
            calibration.learn(drafted, (0.0,) * 20 + (1.0,) * 20)
        said = [0.25, 0.55, 0.75]
        for power, temperature in ((0.5, 0.0), (2.0, 1.0)):
            found = torch.cat([believed(calibration, star([p]), temperature)[0] for p in said])
            np.testing.assert_allclose(found, np.power(said, power), atol=0.06)
        both = star([0.55]), star([0.55])
        pair = CandidateTree(*(torch.cat(x) for x in zip(*(vars(tree).values() for tree in both), strict=True)))
        cold, hot = calibration(pair, torch.tensor([0.0, 1.0], dtype=torch.float64))[:, 0]
        assert cold > hot + 0.3, "side by side each is looked up by its own temperature"


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.3])
@pytest.mark.parametrize("coupled", [True, False])
def test_with_one_temperature_nothing_is_told_apart(temperature: float, coupled: bool) -> None:
    """The slow twin knows of no temperatures, and finds siblings by their parent's f."""
    calibration, plainly = Calibration(LEARNING, coupled), CountedPlainly()
    rng = np.random.default_rng(5)
    for drafted in bushes(rng, 3 * LEARNING.refit_steps):
        calibration.learn(drafted, (temperature,) * 6)
        plainly.learn(drafted)
    table = calibration.table()[band(temperature)]
    np.testing.assert_allclose(table, plainly.table(), rtol=1e-12)
    assert not np.allclose(table, Calibration(LEARNING, coupled).table()[band(temperature)], atol=0.05)  # something was learned


def bushes(rng: np.random.Generator, count: int) -> list[Drafted]:
    """Steps of 6 requests with two children of the root and two of each of these, from all sources, one of each pair right."""
    made = []
    for _ in range(count):
        nodes = []
        for request in range(6):
            said = rng.dirichlet([1, 1, 1], 3)[:, :2].clip(1e-3).tolist()  # of the root, of either child
            right = rng.integers(0, 3, 2).tolist()  # which child comes; 2: neither
            for k in range(2):
                source = int(rng.integers(0, 3))
                nodes.append((request, 1, source, said[0][k], said[0][k], True, right[0] == k))
            for above in range(2):
                for k in range(2):
                    reached, edge = right[0] == above, said[1 + above][k]
                    nodes.append(
                        (request, 2, int(rng.integers(0, 3)), said[0][above] * edge, edge, reached, reached and right[1] == k)
                    )
        made.append(Drafted(*(tuple(x) for x in zip(*nodes, strict=True))))
    return made


def test_a_new_temperature_begins_where_its_kin_are() -> None:
    """Half way between the draft and what was seen; without coupling only temperatures above 0 are alike."""
    for coupled in (True, False):
        calibration = Calibration(LEARNING, coupled)
        for drafted in steps(np.random.default_rng(6), 200, lambda p: 0.3 * p):
            calibration.learn(drafted, (1.0,) * 40)
        row = 0  # first children of the root
        learned = calibration.table()[Band.HOT][row]
        fresh = Calibration(LEARNING, coupled).table()[Band.GREEDY][row]
        found = calibration.table()
        assert (learned[2:] < 0.7 * fresh[2:]).all()
        half = (learned + fresh) / 2
        np.testing.assert_allclose(found[Band.WARM][row], half, atol=0.05)
        np.testing.assert_allclose(found[Band.GREEDY][row], half if coupled else fresh, atol=0.05)


def test_what_one_temperature_taught_does_not_fade_while_others_are_served() -> None:
    calibration = Calibration(LEARNING, coupled=False)
    for drafted in steps(np.random.default_rng(7), 2 * LEARNING.refit_steps, lambda p: 0.3 * p):
        calibration.learn(drafted, COLD)
    before = calibration.table()[Band.GREEDY]
    for drafted in steps(np.random.default_rng(8), 2000, lambda p: p):
        calibration.learn(drafted, (1.0,) * 40)
    assert torch.equal(calibration.table()[Band.GREEDY], before)


@given(st.lists(st.sampled_from([0.0, WARM_UP_TO, 1.0]) | st.floats(0, 100)))
def test_bands_are_the_same_of_numbers_and_of_tensors(temperatures: list[float]) -> None:
    expected = [band(t) for t in temperatures]
    assert bands(torch.tensor(temperatures, dtype=torch.float64)).tolist() == expected
