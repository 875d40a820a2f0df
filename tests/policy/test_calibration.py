"""Calibration: it learns the truth from edges that were put to the test, and from nothing else."""

import numpy as np
import torch
from hypothesis import given

from adaserve.policy.plus.calibration import Calibration
from adaserve.step import Drafted
from adaserve.tree import CandidateTree, Source
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
    said = [0.15, 0.25, 0.5, 0.75]
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
