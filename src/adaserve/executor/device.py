"""The real executor: runs the drafter and the target model on one device.

Between speculate and commit nothing waits for the device; commit waits once, for the step's results. On a GPU that takes shapes
which the host knows beforehand, so selections and checks are padded (SlotTable.spare); on a CPU, where asking costs nothing, they
hold exactly what there is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adaserve.clock import Clock
from adaserve.executor.check import TreeCheck
from adaserve.executor.described import chunk_logprobs, tree_logprobs
from adaserve.executor.found import Found, drafted_of, failed_slots
from adaserve.executor.select import select_padded
from adaserve.executor.trace import Ahead, Trace
from adaserve.padding import GraphPadding, Padding, Unpadded, places
from adaserve.purse import Choose, Selected
from adaserve.runtime.capture import Capture
from adaserve.runtime.slots import SlotTable
from adaserve.runtime.stopwatch import Stopwatch
from adaserve.runtime.table import SamplingTable
from adaserve.runtime.transfer import Fetch, upload
from adaserve.speculation.drafter import Drafter, Gained
from adaserve.step import Chunk, PhaseTimes, StepOutcome, StepPlan, StepShape, Verdict
from adaserve.tree import CandidateTree


@dataclass(frozen=True)
class Preparation:
    """What a drafter does between two steps, in time that is the latter's: the former's catch-up, and trees. watch: how long."""

    catch_up: tuple[Chunk, ...]
    watch: Stopwatch | None


NOTHING = Preparation((), None)


class DeviceExecutor:
    """Executes plans on the device where the target's weights live.

    check: runs the target. choosing: how selections are run, in memory of their own. drafter None: nothing is ever proposed.
    table, sampling: of the slots, the same that check and drafter read.
    """

    def __init__(
        self,
        *,
        check: TreeCheck,
        choosing: Capture,
        drafter: Drafter | None,
        table: SlotTable,
        sampling: SamplingTable,
        clock: Clock,
        watch: Callable[[], Stopwatch],
    ) -> None:
        self._check = check
        self._choosing = choosing
        self._drafter = drafter
        self._table = table
        self._sampling = sampling
        self._clock = clock
        self._watch = watch
        self._stopwatch = watch()
        self._prepared = NOTHING  # what the drafter does ahead of the next step
        self._known: dict[int, int] = {}  # slot -> known tokens, as far as the host has heard
        self._logprobs: dict[int, int] = {}  # slot -> alternatives asked for
        self._trace: Trace | None = None
        self._ahead: Ahead | None = None  # of the step to come
        self._early: Ahead | None = None  # of this step, which came as it was promised

    @property
    def padding(self) -> Padding:
        """How many rows passes compute."""
        return Unpadded() if self._table.spare is None else GraphPadding()

    @property
    def runs_ahead(self) -> bool:
        """Whether steps are begun before the last one's news is told, and promised ones before they are planned.

        So it is on a device that works while the host plans.
        """
        return self._table.spare is not None

    def forget(self) -> None:
        """Drop what the drafter remembers, and a step that was begun and will not be committed."""
        self._stopwatch, self._prepared = self._watch(), NOTHING
        self._trace = self._ahead = self._early = None
        if self._drafter is not None:
            self._drafter.forget()

    @torch.inference_mode()
    def speculate(self, plan: StepPlan) -> CandidateTree:
        """Take in what the plan says of slots and pages, then let the drafter propose.  [n, N], or [places(n), N] if padded"""
        self._stopwatch.mark()
        self._early, self._ahead = self._ahead, None
        if self._early is not None and not self._early.serves(plan):
            self._table.forget(upload(self._early.slots, self._table.device))
            self._early = None
        self._settle(plan)
        if self._drafter is None or (plan.depth == 0 and not plan.catch_up):
            candidates = CandidateTree.empty(self._places(len(plan.decoding)), self._table.device)
        else:
            candidates = self._drafter.propose(plan, self._table).resized(self._places(len(plan.decoding)))
        self._stopwatch.mark()
        return candidates

    @torch.inference_mode()
    def select(self, plan: StepPlan, candidates: CandidateTree, choose: Choose) -> Selected:
        """Let a selection choose, from the plan's own numbers where reading the candidates costs nothing.  As the candidates."""
        if candidates.token.numel() == 0 or plan.limits.nodes <= 0:
            nothing = torch.zeros_like(candidates.token, dtype=torch.bool)
            return Selected(nothing, nothing)
        if self._table.spare is None:
            return choose.on_host(candidates, plan.need, plan.limits, plan.temperature)
        return select_padded(plan, candidates, choose, self._choosing)

    @torch.inference_mode()
    def verify(self, plan: StepPlan, candidates: CandidateTree, chosen: Tensor) -> Verdict:
        """One pass of the target over roots, chosen nodes and prompt chunks; draws a token at every row of the trees.

        What was accepted is kept as well, on the device: its keys and values go from tails to pages, its tokens become known.
        """
        self._stopwatch.mark()
        if self._early is None:
            longest = max((*(self._known[s] for s in plan.decoding), *(c.start + c.length for c in plan.chunks)))
            described = self._described((*plan.decoding, *(c.slot for c in plan.chunks if c.draws)))
            self._trace = self._check(plan, candidates, chosen, longest, described)
        else:
            self._trace = self._early.trace
        self._stopwatch.mark()
        return self._trace.verdict

    @torch.inference_mode()
    def commit(self, plan: StepPlan, verdict: Verdict) -> StepOutcome:
        """Bring what the step brought to the host."""
        assert self._trace is not None, "commit follows verify"
        trace, self._trace = self._trace, None
        early, self._early = self._early, None
        ahead = plan.again and self.runs_ahead
        prepares = self._drafter is not None and self._table.spare is not None
        results = Fetch(trace.results, reused=ahead or prepares)
        before, self._prepared = self._prepared, NOTHING
        if ahead:
            self._ahead = self._run_ahead(plan)
        if self._drafter is not None and prepares:
            watch = self._watch()
            watch.mark()
            self._drafter.prepare(plan, self._table)
            watch.mark()
            self._prepared = Preparation(plan.catch_up, watch)
        found = Found(*results.wait())
        if early is not None:
            found = found.roots(early.rows(plan))
        drawing = [c for c in plan.chunks if c.draws]
        fetched = self._clock.now()
        n = len(plan.decoding)
        gained = zip(found.tokens[:n].tolist(), found.length[:n].tolist(), strict=True)
        tokens = tuple(tuple(row[:length]) for row, length in gained)
        first_tokens = tuple(found.first[: len(drawing)].tolist())
        drafted = drafted_of(found)
        context = sum(c.start + c.length for c in plan.chunks) + sum(self._known[s] for s in plan.decoding)
        for s, new in (*zip(plan.decoding, tokens, strict=True), *((c.slot, (0,)) for c in drawing)):
            self._known[s] += len(new)
        if self._drafter is not None:
            starts = tuple(zip((c.slot for c in drawing), first_tokens, strict=True))
            self._drafter.learn(plan, Gained(tokens, starts, drafted))
        logprobs = tree_logprobs(plan, found, trace, self._logprobs) if self._described(plan.decoding) else ((),) * n
        first_logprobs = chunk_logprobs([c.slot for c in drawing], trace, self._logprobs)
        speculate, select, verify = self._stopwatch.laps()
        speculate += sum(before.watch.laps()) if before.watch is not None else 0.0
        verify += sum(early.watch.laps()) if early is not None else 0.0
        return StepOutcome(
            plan=plan,
            tokens=tokens,
            first_tokens=first_tokens,
            logprobs=logprobs,
            first_logprobs=first_logprobs,
            drafted=drafted,
            failed=failed_slots(plan, found),
            shape=self._shape(plan, trace.tree.rows, context, before.catch_up if prepares else plan.catch_up),
            times=PhaseTimes(speculate=speculate, select=select, verify=verify, commit=self._clock.now() - fetched),
        )

    def close(self) -> None:
        """Let go of graphs: those of ranks that share the target hold collectives, and their group cannot end before them."""
        self._trace = self._ahead = self._early = None
        self._check.forget()
        self._choosing.forget()

    def _run_ahead(self, plan: StepPlan) -> Ahead | None:
        """Begin the plain step that the plan promises; None where what its requests ask for is not captured.

        It reads tokens that the host has not heard of yet. Each request has a page for one more known token than the plan needed.
        """
        slots = plan.decoding
        if self._described(slots) or self._sampling.traits(slots).edits_logits:
            return None
        watch = self._watch()
        watch.mark()
        after = replace(plan, chunks=(), depth=0, limits=replace(plan.limits, nodes=0, depth=0))
        nothing = CandidateTree.empty(self._places(len(slots)), self._table.device)
        trace = self._check(after, nothing, nothing.token.bool(), max(self._known[s] for s in slots) + 1, described=False)
        watch.mark()
        return Ahead(slots, trace, watch)

    def _places(self, requests: int) -> int:
        """For how many requests there are trees, padding included."""
        return requests if self._table.spare is None else places(requests)

    def _settle(self, plan: StepPlan) -> None:
        """Bookkeeping that comes before the passes: who left, who came, who owns which pages."""
        for slot in plan.released:
            self._sampling.release(slot)
            self._logprobs.pop(slot, None)
            if self._drafter is not None:
                self._drafter.release(slot)
        for placement in plan.placed:
            self._table.place(placement)
            self._known[placement.slot] = len(placement.tokens)
            self._sampling.place(placement)
            self._logprobs.pop(placement.slot, None)
            if placement.sampling.logprobs is not None:
                self._logprobs[placement.slot] = placement.sampling.logprobs
            if self._drafter is not None:
                self._drafter.place(placement)
        self._table.grant(plan.grants)

    def _described(self, slots: Sequence[int]) -> bool:
        """Whether any of these requests asked for log-probabilities, for which their logits must last until commit."""
        return not self._logprobs.keys().isdisjoint(slots)

    def _shape(self, plan: StepPlan, trees: int, context: int, catch_up: Sequence[Chunk]) -> StepShape:
        """What was computed in the step's time; trees: rows of trees, padding included. catch_up: of the draft in this time."""
        prompt = sum(c.length for c in plan.chunks)
        rows = self.padding.whole(trees, prompt)
        draft_rows, draft_context = self._drafter.work(plan, catch_up) if self._drafter else ((), 0)
        return StepShape(rows, context, draft_rows, draft_context, prompt)
