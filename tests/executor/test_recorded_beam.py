"""The recorded beam against its slow twin, the drafter's own beam, fed with the same probabilities."""

import random

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaserve.executor.recorded_beam import GrownTrees, grow, grow_by_depth
from adaserve.speculation.beam import Beam
from adaserve.tree import ROOT, CandidateTree
from tests.recordings import random_recording
from tests.strategies import seeds

RECORDING = random_recording(np.random.default_rng(1), outputs=2, width=4)


class Case:
    """What a beam is grown from: n requests somewhere in the recording, and what stands beside their paths."""

    def __init__(self, rng: random.Random) -> None:
        self.n, self.depth, self.width = rng.randint(1, 4), rng.randint(1, 5), rng.randint(1, 6)
        total = len(RECORDING.rank)
        self.ahead = np.array([[rng.randrange(total) for _ in range(self.depth)] for _ in range(self.n)])
        self.aside = np.array(
            [[[rng.randrange(total) for _ in range(self.width)] for _ in range(self.depth)] for _ in range(self.n)]
        )
        self.room = np.array([rng.randint(0, self.depth + 1) for _ in range(self.n)])

    def grow(self) -> GrownTrees:
        return grow(RECORDING.prob, RECORDING.rank, self.ahead, self.aside, self.room, self.width)

    def twin(self) -> tuple[CandidateTree, list[list[bool]]]:
        """Grow the same trees with speculation/beam.py, looking every row up by itself, and say which nodes are on the path."""
        ranks = min(self.width, RECORDING.width)
        beam = Beam(self.width, torch.from_numpy(self.room))
        on = [[True] for _ in range(self.n)]  # of the last step's rows
        every: list[list[bool]] = [[] for _ in range(self.n)]
        for step in range(self.depth):
            at = [
                [self.ahead[i, step] if true else self.aside[i, step, row] for row, true in enumerate(on[i])]
                for i in range(self.n)
            ]
            log_prob = torch.tensor(RECORDING.prob[np.array(at), :ranks]).log()  # [n, r, k]
            rows = beam.extend(torch.arange(ranks).expand(log_prob.shape), log_prob)
            for i in range(self.n):
                first = (step - 1) * self.width
                above = [on[i][p - first] if p != ROOT else True for p in rows.parent[i].tolist()]
                truth = RECORDING.rank[self.ahead[i, step]]
                nodes = zip(above, rows.token[i].tolist(), rows.path_prob[i].tolist(), strict=True)
                on[i] = [parent and token == truth and f > 0 for parent, token, f in nodes]
                every[i] += on[i]
        return beam.tree(), every


@given(seeds())
@settings(max_examples=200)
def test_it_grows_the_trees_of_the_real_beam(rng: random.Random) -> None:
    case = Case(rng)
    grown, (tree, on) = case.grow(), case.twin()
    np.testing.assert_allclose(grown.path_prob, tree.path_prob.numpy(), rtol=1e-12)
    real = grown.path_prob > 0
    np.testing.assert_array_equal(grown.token[real], tree.token.numpy()[real])
    np.testing.assert_array_equal(grown.parent[real], tree.parent.numpy()[real])
    np.testing.assert_array_equal(grown.on, np.array(on))


@given(seeds())
@settings(max_examples=200)
def test_chains_grow_as_they_do_depth_by_depth(rng: random.Random) -> None:
    case = Case(rng)
    case.width = 1
    fast = case.grow()
    slow = grow_by_depth(RECORDING.prob, RECORDING.rank, case.ahead, case.aside, case.room, 1)
    for name in ("token", "parent", "path_prob", "on"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name), strict=True)


@given(seeds())
def test_at_most_one_node_a_depth_is_on_the_path_and_below_another_one(rng: random.Random) -> None:
    case = Case(rng)
    grown = case.grow()
    by_depth = grown.on.reshape(case.n, case.depth, case.width).sum(2)  # [n, d]
    assert by_depth.max() <= 1
    assert (np.diff(by_depth, axis=1) <= 0).all()
    request, column = grown.on.nonzero()
    above = grown.parent[request, column]
    assert (grown.on[request, above] | (above == ROOT)).all()


@given(seeds(), st.integers(1, 3))
def test_nobody_drafts_beyond_its_room(rng: random.Random, room: int) -> None:
    case = Case(rng)
    case.room = np.full(case.n, room)
    depth = np.arange(case.depth * case.width) // case.width + 1
    assert not case.grow().path_prob[:, depth > room].any()
