"""The simulated executor against the real walk over packed trees, and the expectation that f promises."""

import random

import numpy as np
import torch
from hypothesis import given, settings

from adaserve.clock import VirtualClock
from adaserve.executor.acceptance import Recording
from adaserve.executor.simulated import SimulatedExecutor
from adaserve.executor.truth import Truth, drawn_residuals
from adaserve.padding import Unpadded
from adaserve.policy.selection import SloSelection
from adaserve.profile import Profile
from adaserve.purse import Purse
from adaserve.request import SamplingParams
from adaserve.speculation.verifier import verify
from adaserve.step import Chunk, Limits, Placement, StepPlan
from adaserve.tree import CandidateTree, edge_prob, pack
from tests.recordings import random_recording
from tests.strategies import seeds

RECORDING = random_recording(np.random.default_rng(2))
PROFILE = Profile("test", {1: 10.0, 64: 20.0}, 0.1, {1: 1.0, 64: 2.0}, 0.01, 0.5, 0.1, 10.0)
PROMPT = 7


class Bench:
    """An executor with n requests in its slots, each at some place of its output, and plans for them."""

    def __init__(self, recording: Recording, n: int, rng: random.Random, max_tokens: int = 60) -> None:
        self.n, self.rng, self.clock = n, rng, VirtualClock()
        self.scripts = {seed: rng.randrange(len(recording.prompt)) for seed in range(n)}
        self.produced = [rng.randint(1, max_tokens - 1) for _ in range(n)]
        draws = np.random.default_rng(rng.getrandbits(32))
        truth = Truth(PROFILE, drawn_residuals(0.1, draws))
        self.executor = SimulatedExecutor(
            recording=recording, scripts=self.scripts, truth=truth, clock=self.clock, rng=draws, slots=n, padding=Unpadded()
        )
        self.placed = tuple(
            Placement(slot, (0,) * (PROMPT + k), PROMPT, SamplingParams(max_tokens=max_tokens), slot, 0, ())
            for slot, k in enumerate(self.produced)
        )

    def plan(self, depth: int, width: int, nodes: int, everybody: bool = False) -> StepPlan:
        """A plan for the first step."""
        drafting = [
            Chunk(slot, PROMPT + k - 1, 1, draws=True) if everybody or self.rng.random() < 0.8 else None
            for slot, k in enumerate(self.produced)
        ]
        return StepPlan(
            released=(),
            placed=self.placed,
            grants=(),
            decoding=tuple(range(self.n)),
            need=tuple(self.rng.uniform(0, 4) for _ in range(self.n)),
            room=(depth,) * self.n,
            temperature=(0.0,) * self.n,
            drafting=tuple(drafting),
            chunks=(),
            catch_up=(),
            limits=Limits(nodes, 8, depth),
            depth=depth,
            width=width,
            predicted=0.01,
        )


def selected(candidates: CandidateTree, plan: StepPlan) -> torch.Tensor:
    need, temperature = (torch.tensor(x, dtype=torch.float64) for x in (plan.need, plan.temperature))
    return SloSelection()(candidates, need, Purse.of(plan.limits), temperature).chosen


@given(seeds())
@settings(max_examples=150)
def test_it_accepts_what_the_real_walk_accepts(rng: random.Random) -> None:
    bench = Bench(RECORDING, rng.randint(1, 5), rng)
    plan = bench.plan(depth := rng.randint(1, 5), rng.randint(1, 4), rng.randint(0, 40))
    candidates = bench.executor.speculate(plan)
    chosen = selected(candidates, plan)
    verdict = bench.executor.verify(plan, candidates, chosen)
    started = bench.clock.now()
    outcome = bench.executor.commit(plan, verdict)

    # The slow twin packs the trees, draws the true token of its depth at every row, and walks.
    tree = pack(candidates, chosen, torch.zeros(bench.n, dtype=torch.int64))
    drawn = [
        RECORDING.rank[RECORDING.path(bench.scripts[i], 200)[bench.produced[i] + d]]
        for i, d in zip(tree.row.tolist(), tree.depth.tolist(), strict=True)
    ]
    twin = verify(tree, torch.tensor(drawn), depth)
    assert verdict.length.tolist() == twin.length.tolist()
    assert verdict.accepted.tolist() == twin.accepted.tolist()
    assert outcome.tokens == tuple(tuple(row[:k]) for row, k in zip(twin.tokens.tolist(), twin.length.tolist(), strict=True))

    node = (tree.depth > 0).nonzero()[:, 0]
    row, column = tree.row[node], tree.column[node]
    assert outcome.drafted.request == tuple(row.tolist())
    assert outcome.drafted.depth == tuple(tree.depth[node].tolist())
    assert outcome.drafted.path_prob == tuple(candidates.path_prob[row, column].tolist())
    np.testing.assert_allclose(outcome.drafted.edge_prob, edge_prob(candidates)[row, column])
    assert outcome.drafted.reached == tuple(twin.accepted[tree.parent[node]].tolist())
    assert outcome.drafted.accepted == tuple(twin.accepted[node].tolist())
    assert outcome.shape.rows == tree.rows
    assert outcome.shape.context == sum(PROMPT + k for k in bench.produced)
    assert outcome.times.total == bench.clock.now() - started


def test_as_many_are_accepted_as_f_promises() -> None:
    """The recording's draft is its target's own distribution, so 1 + sum f is what a tree gains on average."""
    rng = random.Random(0)
    recording = random_recording(np.random.default_rng(5), outputs=100, length=100, sharpness=10.0)
    promised, gained = 0.0, 0
    for _ in range(40):
        bench = Bench(recording, 64, rng)
        plan = bench.plan(depth=4, width=3, nodes=300, everybody=True)
        candidates = bench.executor.speculate(plan)
        outcome = bench.executor.commit(plan, bench.executor.verify(plan, candidates, selected(candidates, plan)))
        drafted = outcome.drafted
        promised += sum(drafted.path_prob)
        gained += sum(drafted.accepted)
    assert gained > 2000, "too few drafts were accepted to tell"
    # Acceptances along one path hang together: a path of depth d varies by up to d times the sum of its f.
    assert abs(gained - promised) < 4 * (4 * promised) ** 0.5


def test_plain_decoding_proposes_nothing_and_gains_one() -> None:
    bench = Bench(RECORDING, 3, random.Random(0))
    plan = bench.plan(depth=0, width=3, nodes=0)
    candidates = bench.executor.speculate(plan)
    assert candidates.token.shape == (3, 0)
    outcome = bench.executor.commit(plan, bench.executor.verify(plan, candidates, selected(candidates, plan)))
    assert [len(tokens) for tokens in outcome.tokens] == [1, 1, 1]
