"""Calibration: it learns the truth from edges that were put to the test, and from nothing else."""

import numpy as np
import torch
from hypothesis import given

from adaserve.policy.plus.calibration import Calibration
from adaserve.step import Drafted
from adaserve.tree import CandidateTree, Source, edge_prob
from tests.strategies import candidate_trees


def star(prob: list[float]) -> CandidateTree:
    """One request, children of the root with these probabilities."""
    f = torch.tensor([prob], dtype=torch.float64)
    ids = torch.zeros_like(f, dtype=torch.int64)
    return CandidateTree(torch.arange(len(prob))[None], ids - 1, ids + 1, f, ids)


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
    calibration = Calibration()
    for drafted in steps(np.random.default_rng(0), 500, lambda p: p**2):
        calibration.learn(drafted)
    said = [0.25, 0.35, 0.55, 0.75, 0.85]
    found = torch.cat([calibration(star([p]))[0] for p in said])
    np.testing.assert_allclose(found, np.square(said), atol=0.03)
    second = CandidateTree(
        *(torch.tensor([x]) for x in ([0, 1], [-1, 0], [1, 2])), torch.tensor([[0.9, 0.5]]).double(), torch.zeros(1, 2).long()
    )
    f = calibration(second)[0]
    assert abs(f[1] / f[0] - (0.5 / 0.9) ** 2) < 0.04, "counting children of refused parents would pull this down by half"


def test_sources_are_told_apart() -> None:
    calibration = Calibration()
    for drafted in steps(np.random.default_rng(1), 100, lambda p: 0.1 + 0 * p, Source.NGRAM):
        calibration.learn(drafted)
    model, lookup = calibration.table()[0], calibration.table()[6]
    assert abs(model[7] - 0.45) < 1e-6 and lookup[7] < 0.15


def test_a_draft_is_believed_before_anything_was_seen() -> None:
    said = [0.75, 0.5, 0.25, 0.15]
    np.testing.assert_allclose(Calibration()(star(said))[0], said, atol=0.05)


@given(candidates=candidate_trees())
def test_f_never_rises_along_a_path_and_padding_stays(candidates: CandidateTree) -> None:
    calibration = Calibration()
    for drafted in steps(np.random.default_rng(2), 32, lambda p: 1 - p):  # the worst order there is
        calibration.learn(drafted)
    f = calibration(candidates)
    assert torch.equal(f > 0, candidates.path_prob > 0)
    if f.numel():
        above = torch.cat([torch.ones(f.shape[0], 1).double(), f], 1).gather(1, candidates.parent + 1)
        assert (f <= above + 1e-12).all()


def test_a_second_choice_is_not_a_first_one() -> None:
    """First children of 0.45 are always right, second ones never: neither speaks for the other."""
    pair = Drafted((0, 0), (1, 1), (0, 0), (0.45, 0.45), (0.45, 0.45), (True, True), (True, False))
    calibration = Calibration()
    for _ in range(320):
        calibration.learn(pair)
    first, second = calibration(star([0.45, 0.45]))[0].tolist()
    assert first > 0.85 and second < 0.15


def pair_of_children(said: tuple[float, float], sources: tuple[Source, Source]) -> CandidateTree:
    """One request whose root has two children."""
    ids = torch.zeros(1, 2, dtype=torch.int64)
    source = torch.tensor([[int(s) for s in sources]])
    return CandidateTree(torch.tensor([[0, 1]]), ids - 1, ids + 1, torch.tensor([said], dtype=torch.float64), source)


def test_no_later_child_is_believed_more_than_the_first() -> None:
    """First children never come, second ones always: the first is verified before the second all the same."""
    seen = Drafted((0, 0), (1, 1), (0, 0), (0.45, 0.45), (0.45, 0.45), (True, True), (False, True))
    calibration = Calibration()
    for _ in range(320):
        calibration.learn(seen)
    first, second = calibration(star([0.45, 0.45]))[0].tolist()
    assert second == first < 0.15
    assert calibration.edges(seen) == [first, second]


def test_a_child_of_look_up_is_not_a_later_one() -> None:
    """Verified without the model's child or beside it, it is counted and looked up in the same cell, and not held back."""
    alone = Drafted((0,), (1,), (int(Source.NGRAM),), (0.45,), (0.45,), (True,), (True,))
    calibration = Calibration()
    for _ in range(320):
        calibration.learn(alone)
    model, lookup = calibration(pair_of_children((0.45, 0.45), (Source.MODEL, Source.NGRAM)))[0].tolist()
    assert lookup > 0.85 and abs(model - 0.45) < 1e-6
    both = Drafted((0, 0), (1, 1), (0, 1), (0.45, 0.45), (0.45, 0.45), (True, True), (False, True))
    assert calibration.edges(both) == [model, lookup]
    first, second = calibration(pair_of_children((0.45, 0.30), (Source.NGRAM, Source.MODEL)))[0].tolist()
    assert first > 0.85 and abs(second - calibration(star([0.30]))[0, 0]) < 1e-9, "the model's own first child stays a first one"


@given(candidates=candidate_trees())
def test_verified_nodes_and_candidates_are_looked_up_alike(candidates: CandidateTree) -> None:
    """If all are verified, what is expected of the one is what was expected of the other."""
    calibration = Calibration()
    for drafted in steps(np.random.default_rng(3), 32, lambda p: p**3):
        calibration.learn(drafted)
    edge, f = edge_prob(candidates), calibration(candidates)
    for i in range(f.shape[0]):
        column = (candidates.path_prob[i] > 0).nonzero()[:, 0]
        parent, depth = candidates.parent[i][column], candidates.depth[i][column]
        before = torch.where(parent >= 0, candidates.path_prob[i][parent], 1.0)
        families = {(p, d) for p, d in zip(before.tolist(), depth.tolist(), strict=True)}
        if len(families) < len(set(parent.tolist())):
            continue  # two parents of one depth and equal f cannot be told apart from outside
        zeros, yes = (0,) * len(column), (True,) * len(column)
        seen = (depth, candidates.source[i][column], candidates.path_prob[i][column], edge[i][column])
        found = calibration.edges(Drafted(zeros, *(tuple(x.tolist()) for x in seen), yes, yes))
        above = torch.where(parent >= 0, f[i][parent], 1.0)
        np.testing.assert_allclose(found, f[i][column] / above, rtol=1e-6)
