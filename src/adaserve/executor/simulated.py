"""The simulated executor: recorded acceptance instead of models, a virtual clock instead of waiting.

Everything else of the engine is the real thing and cannot tell the difference. Tokens here are ranks in the recording (see
recorded_beam.py); nothing but their being on or off the true path matters.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from adaserve.clock import VirtualClock
from adaserve.executor.acceptance import Recording
from adaserve.executor.recorded_beam import Bools, Floats, Ints, grow
from adaserve.executor.truth import Truth
from adaserve.padding import Padding
from adaserve.purse import Choose, Selected
from adaserve.step import Drafted, Placement, StepOutcome, StepPlan, StepShape, Verdict, draft_work
from adaserve.tree import MAX_NODES, ROOT, CandidateTree, Source


@dataclass(frozen=True)
class Walk:
    """What verification leaves for commit: the chosen nodes and the accepted ones among them, [n, N] each, and their trees."""

    candidates: CandidateTree
    chosen: Bools
    accepted: Bools


class SimulatedExecutor:
    """Executes plans on a machine that does not exist.

    recording: whose outputs the requests produce. scripts: for the seed of every request, the recorded sequence that it follows;
    one that wants more tokens goes on with the next sequences of the class. truth: how long steps take. clock: is moved on by
    that. rng: draws what stands off the true path. slots: most requests at once.
    padding: how many rows its passes compute.
    """

    def __init__(
        self,
        *,
        recording: Recording,
        scripts: Mapping[int, int],
        truth: Truth,
        clock: VirtualClock,
        rng: np.random.Generator,
        slots: int,
        padding: Padding,
    ) -> None:
        self.padding = padding
        self.runs_ahead = False  # the scheduler's promise would gain nothing in virtual time
        self._recording = recording
        self._scripts = scripts
        self._truth = truth
        self._clock = clock
        self._rng = rng
        self._prompt = np.zeros(slots, dtype=np.int64)  # [slots] prompt tokens
        self._known = np.zeros(slots, dtype=np.int64)  # [slots] known tokens
        self._path = np.zeros((slots, 0), dtype=np.int64)  # [slots, L] recorded position of every output token
        self._first = np.zeros(slots, dtype=np.float64)  # [slots] the positions of the request's class: the first, and how many
        self._count = np.ones(slots, dtype=np.float64)
        self._on: Bools = np.zeros((0, 0), dtype=bool)  # [n, N] candidates on the true path
        self._true: Ints = np.zeros((0, 1), dtype=np.int64)  # [n, D + 1] the tokens that will come, if all are accepted
        self._walk: Walk | None = None

    def forget(self) -> None:
        """Nothing is remembered."""

    def speculate(self, plan: StepPlan) -> CandidateTree:
        """Propose what the recorded draft would, d beam steps of width w.  [n, N]"""
        for placement in plan.placed:
            self._place(placement)
        n, depth, width = len(plan.decoding), plan.depth, plan.width
        slot = np.array(plan.decoding, dtype=np.int64)  # [n]
        ahead = self._ahead(slot, depth + 1)  # [n, D + 1]
        self._true = self._recording.rank[ahead]
        room = [most if chunk is not None else 0 for most, chunk in zip(plan.room, plan.drafting, strict=True)]
        if depth == 0 or not any(room):
            self._on = np.zeros((n, 0), dtype=bool)
            return CandidateTree.empty(n)
        grown = grow(
            self._recording.prob,
            self._recording.rank,
            ahead[:, :depth],
            self._aside(slot, depth, width),
            np.array(room),
            width,
        )
        self._on = grown.on
        token = torch.from_numpy(grown.token)  # [n, N]
        return CandidateTree(
            token=token,
            parent=torch.from_numpy(grown.parent),
            depth=(torch.arange(depth * width) // width + 1).expand(n, -1),
            path_prob=torch.from_numpy(grown.path_prob),
            source=torch.full_like(token, Source.MODEL),
        )

    def select(self, plan: StepPlan, candidates: CandidateTree, choose: Choose) -> Selected:
        """Call the selection."""
        return choose.on_host(candidates, plan.need, plan.limits, plan.temperature)

    def verify(self, plan: StepPlan, candidates: CandidateTree, chosen: torch.Tensor) -> Verdict:
        """Accept the chosen nodes on the true path: chosen nodes are connected, so they are a path from the root."""
        picked: Bools = chosen.numpy()  # [n, N]
        accepted = picked & self._on
        self._walk = Walk(candidates, picked, accepted)
        n, columns = picked.shape
        rows = np.ones((2, n, 1 + columns), dtype=bool)  # the roots, then the nodes: those chosen, those accepted
        rows[0, :, 1:], rows[1, :, 1:] = picked, accepted
        return Verdict(
            tokens=torch.from_numpy(self._true),
            length=torch.from_numpy(accepted.sum(1) + 1),
            accepted=torch.from_numpy(rows[1][rows[0]]),
        )

    def commit(self, plan: StepPlan, verdict: Verdict) -> StepOutcome:
        """Append the tokens and let the step's time pass."""
        assert self._walk is not None, "commit follows verify"
        walk, self._walk = self._walk, None
        slot, length = np.array(plan.decoding, dtype=np.int64), verdict.length.numpy()  # [n]
        context = int(self._known[slot].sum()) + sum(c.start + c.length for c in plan.chunks)
        most = min(plan.limits.nodes, walk.chosen.size)
        trees = self.padding.trees(len(slot), int(walk.chosen.sum()), most)
        prompt = sum(c.length for c in plan.chunks)
        rows = self.padding.whole(trees, prompt)
        shape = StepShape(rows, context, *draft_work(plan.drafting, plan.catch_up, plan.depth, plan.width), prompt)
        times = self._truth.times(shape)
        self._clock.advance(times.total)
        self._known[slot] += length
        first: tuple[int, ...] = ()
        if any(c.draws for c in plan.chunks):
            beginning = np.array([c.slot for c in plan.chunks if c.draws], dtype=np.int64)  # [C]
            first = tuple(self._recording.rank[self._ahead(beginning, 1)[:, 0]].tolist())
            self._known[beginning] += 1
        return StepOutcome(
            plan=plan,
            tokens=tuple([tuple(row[:gained]) for row, gained in zip(verdict.tokens.tolist(), length.tolist(), strict=True)]),
            first_tokens=first,
            logprobs=((),) * len(slot),
            first_logprobs=((),) * len(first),
            drafted=_drafted(walk),
            failed=(),
            shape=shape,
            times=times,
        )

    def close(self) -> None:
        """There is nothing to let go of."""

    def _place(self, placement: Placement) -> None:
        """A request comes to a slot: write down along which positions its output will run."""
        slot = placement.slot
        sequence = self._scripts[placement.seed]
        length = placement.sampling.max_tokens + MAX_NODES + 1  # trees may look beyond the last token
        if length > self._path.shape[1]:
            self._path = np.pad(self._path, ((0, 0), (0, length - self._path.shape[1])))
        self._path[slot, :length] = self._recording.path(sequence, length)
        mine = self._recording.positions(self._recording.classes[self._recording.class_of(sequence)])
        self._first[slot], self._count[slot] = mine.start, mine.stop - mine.start
        self._prompt[slot], self._known[slot] = placement.prompt_length, len(placement.tokens)

    def _ahead(self, slot: Ints, depth: int) -> Ints:
        """Recorded positions of the next `depth` tokens of every slot [n]: [n, depth]."""
        produced = (self._known - self._prompt)[slot]  # [n]
        return self._path[slot[:, None], produced[:, None] + np.arange(depth)]

    def _aside(self, slot: Ints, depth: int, width: int) -> Ints:
        """Random positions of every slot's class: [n, depth, width]."""
        share: Floats = self._rng.random((len(slot), depth, width))
        aside: NDArray[np.float64] = self._first[slot, None, None] + share * self._count[slot, None, None]
        return aside.astype(np.int64)


def _drafted(walk: Walk) -> Drafted:
    """Describe the verified nodes for learning and metrics."""
    if not walk.chosen.any():
        return Drafted((), (), (), (), (), (), ())
    row, column = walk.chosen.nonzero()  # [m] in order of requests, parents first
    tree = walk.candidates
    above = tree.parent.numpy()[row, column]  # [m]
    path_prob = tree.path_prob.numpy()
    f = path_prob[row, column]
    child_of_root = above == ROOT
    return Drafted(
        request=tuple(row.tolist()),
        depth=tuple(tree.depth.numpy()[row, column].tolist()),
        source=(int(Source.MODEL),) * len(row),
        path_prob=tuple(f.tolist()),
        edge_prob=tuple((f / np.where(child_of_root, 1.0, path_prob[row, above])).tolist()),
        reached=tuple((child_of_root | walk.accepted[row, above]).tolist()),
        accepted=tuple(walk.accepted[row, column].tolist()),
    )
