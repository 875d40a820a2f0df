"""The real executor: runs the drafter and the target model on one device.

Between speculate and commit nothing waits for the device; commit waits once, for the step's results. On a GPU that takes shapes
which the host knows beforehand, so trees are padded to the most that a step may choose (SlotTable.spare); on a CPU, where asking
costs nothing, they hold exactly what was chosen.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from adaserve.cache.pool import KVPool
from adaserve.clock import Clock
from adaserve.executor.described import chunk_logprobs, tree_logprobs
from adaserve.executor.found import Found, drafted_of, failed_slots
from adaserve.executor.trace import Ahead, Trace
from adaserve.kernels.trees import edge_prob, pack
from adaserve.models.decoder import Decoder
from adaserve.padding import GraphPadding, Padding, Unpadded, places
from adaserve.purse import Choose, Purse, Selected
from adaserve.runtime.batch import ForwardBatch
from adaserve.runtime.capture import Capture, reach
from adaserve.runtime.passes import Passes
from adaserve.runtime.sampling import DrawRows, draw
from adaserve.runtime.slots import SlotTable
from adaserve.runtime.stopwatch import Stopwatch
from adaserve.runtime.table import SamplingTable, Traits
from adaserve.runtime.transfer import Fetch, bundle, stage, upload
from adaserve.speculation.drafter import Drafter, Gained
from adaserve.speculation.verifier import verify
from adaserve.step import PhaseTimes, StepOutcome, StepPlan, StepShape, Verdict
from adaserve.tree import MAX_NODES, CandidateTree, DraftTree


class DeviceExecutor:
    """Executes plans on the device where the target's weights live.

    passes, capture: how the target is run. choosing: how selections are, in memory of their own. table: of the slots. drafter
    None: nothing is ever proposed.
    """

    def __init__(
        self,
        *,
        target: Decoder,
        pool: KVPool,
        passes: Passes,
        capture: Capture,
        choosing: Capture,
        drafter: Drafter | None,
        table: SlotTable,
        clock: Clock,
        watch: Callable[[], Stopwatch],
    ) -> None:
        self._target = target
        self._pool = pool
        self._passes = passes
        self._capture = capture
        self._choosing = choosing
        self._drafter = drafter
        self._table = table
        self._clock = clock
        self._watch = watch
        self._stopwatch = watch()
        self._prepared: Stopwatch | None = None  # of what the drafter does ahead of the next step
        self._sampling = SamplingTable(table.known.shape[0], target.config.vocab_size, target.device)
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
        """Whether promised steps are begun before they are planned: on a device that works while the host plans."""
        return self._table.spare is not None

    def forget(self) -> None:
        """Drop what the drafter remembers."""
        if self._drafter is not None:
            self._drafter.forget()

    @torch.inference_mode()
    def speculate(self, plan: StepPlan) -> CandidateTree:
        """Take in what the plan says of slots and pages, then let the drafter propose.  [n, N]"""
        self._stopwatch.mark()
        self._early, self._ahead = self._ahead, None
        if self._early is not None and not self._early.serves(plan):
            self._table.forget(upload(self._early.slots, self._table.device))
            self._early = None
        self._settle(plan)
        if self._drafter is None or (plan.depth == 0 and not plan.catch_up):
            candidates = CandidateTree.empty(len(plan.decoding), self._table.device)
        else:
            candidates = self._drafter.propose(plan, self._table)
        self._stopwatch.mark()
        return candidates

    @torch.inference_mode()
    def select(self, plan: StepPlan, candidates: CandidateTree, choose: Choose) -> Selected:
        """Let a selection choose, as one captured call where that pays: it is dozens of kernels over next to nothing.  [n, N]

        Then requests are padded to one of a few numbers by such as have no candidates, and so are nodes and prices.
        """
        n, columns = candidates.token.shape
        limits, device = plan.limits, self._table.device
        if n * columns == 0 or limits.nodes <= 0:
            nothing = torch.zeros_like(candidates.token, dtype=torch.bool)
            return Selected(nothing, nothing)
        if self._table.spare is None:
            return choose.on_host(candidates, plan.need, limits, plan.temperature)
        count = places(n)
        nodes = min(limits.nodes, count * columns)  # more cannot be bought
        most = min(places(nodes), count * columns)
        least = most if nodes == count * columns else 0
        price = limits.price[: nodes + 1]
        price = (*price, *[math.inf] * (most + 1 - len(price))) if price else ()
        idle = [0.0] * (count - n)
        need, temperature = (stage([*x, *idle], device, torch.float64) for x in (plan.need, plan.temperature))  # [count]
        tensors: Sequence[Tensor] = candidates.parent, candidates.depth, candidates.path_prob, candidates.source
        if count > n:
            tensors = [pad(x, (0, 0, 0, count - n)) for x in tensors]

        def run(need: Tensor, nodes: Tensor, price: Tensor, temperature: Tensor, parent: Tensor, *rest: Tensor) -> Selected:
            purse = Purse(nodes[0], price, least, most, limits.per_request, limits.depth, limits.order)
            return choose(CandidateTree(parent, parent, *rest), need, purse, temperature)  # tokens are nothing to go by

        key = "select", choose, least, most, limits.per_request, limits.depth, limits.order
        inputs = need, stage([nodes], device), stage(price, device, torch.float64), temperature, *tensors
        found = self._choosing(key, run, *inputs)
        return Selected(found.chosen[:n], found.slo[:n])

    @torch.inference_mode()
    def verify(self, plan: StepPlan, candidates: CandidateTree, chosen: Tensor) -> Verdict:
        """One pass of the target over roots, chosen nodes and prompt chunks; draws a token at every row of the trees.

        What was accepted is kept as well, on the device: its keys and values go from tails to pages, its tokens become known.
        """
        self._stopwatch.mark()
        if self._early is None:
            longest = max((*(self._known[s] for s in plan.decoding), *(c.start + c.length for c in plan.chunks)))
            self._trace = self._check(plan, candidates, chosen, longest)
        else:
            self._trace = self._early.trace
        self._stopwatch.mark()
        return self._trace.verdict

    def _check(self, plan: StepPlan, candidates: CandidateTree, chosen: Tensor, longest: int) -> Trace:
        """The device's work of `verify`, in captured calls where it may be captured. longest: most context of a row.

        Prompt chunks are of too many sizes for one call: then what comes before and after the pass is captured, and the pass by
        itself for buckets of sizes. Edited and described logits depend on more than a key can say.
        """
        drawing = tuple(c.slot for c in plan.chunks if c.draws)
        slots = plan.decoding + drawing
        spare, device = self._table.spare, self._table.device
        traits = self._sampling.traits(slots)
        tensors = candidates.token, candidates.parent, candidates.depth, candidates.path_prob, candidates.source
        if spare is None or traits.edits_logits or self._described(slots):
            size = None if spare is None else _most_rows(plan, candidates, len(plan.decoding))
            slot_of = upload(slots, device)  # [n + C]
            tree = self._pack(size, slot_of[: len(plan.decoding)], chosen, *tensors)
            batch = self._table.with_chunks(self._rows(tree, slot_of[: len(plan.decoding)]), plan.chunks)
            hidden = _drawing_rows(plan, self._passes(batch, longest), 0)
            return self._draw(tree, candidates, plan.depth, traits, hidden, slot_of)

        count = places(len(plan.decoding))
        idle = [spare] * (count - len(plan.decoding))  # the spare slot, for places that are too many
        size = _most_rows(plan, candidates, count)
        slot = stage([*plan.decoding, *idle], device)  # [n]
        padded = [pad(x, (0, 0, 0, len(idle))) for x in (chosen, *tensors)] if idle else [chosen, *tensors]
        if not plan.chunks:
            bound = reach(longest)

            def check(slot: Tensor, chosen: Tensor, *proposed: Tensor) -> Trace:
                tree = self._pack(size, slot, chosen, *proposed)
                hidden = self._passes.plain(self._rows(tree, slot), bound)
                return self._draw(tree, CandidateTree(*proposed), plan.depth, traits, hidden, slot).without_logits()

            return self._capture(("verify", size, plan.depth, bound, traits), check, slot, *padded)

        def rows(slot: Tensor, chosen: Tensor, *proposed: Tensor) -> ForwardBatch:
            return self._rows(self._pack(size, slot, chosen, *proposed), slot)

        def check_rest(hidden: Tensor, slot_of: Tensor, chosen: Tensor, *proposed: Tensor) -> Trace:
            tree = self._pack(size, slot_of[:count], chosen, *proposed)  # once more: less than copying what was packed
            return self._draw(tree, CandidateTree(*proposed), plan.depth, traits, hidden, slot_of).without_logits()

        batch = self._table.with_chunks(self._capture(("rows", size), rows, slot, *padded), plan.chunks)
        more = [spare] * (places(len(drawing)) - len(drawing))
        hidden = _drawing_rows(plan, self._passes(batch, longest), len(more))
        slot_of = stage([*plan.decoding, *idle, *drawing, *more], device)  # [n + C]
        return self._capture(("draw", size, plan.depth, traits), check_rest, hidden, slot_of, *padded)

    def _pack(self, size: int | None, slot: Tensor, chosen: Tensor, *proposed: Tensor) -> DraftTree:
        return pack(CandidateTree(*proposed), chosen, self._table.last_tokens(slot), size)

    def _rows(self, tree: DraftTree, slot: Tensor) -> ForwardBatch:
        return self._table.tree_batch(tree, slot, self._pool.tail_start)

    def _draw(
        self, tree: DraftTree, proposed: CandidateTree, depth: int, traits: Traits, hidden: Tensor, slot_of: Tensor
    ) -> Trace:
        """Draw at every row, walk the trees, and keep what was accepted.

        hidden [B + C, hidden]. slot_of [n + C]: slots of requests, then of chunks that draw, padding included. Of what the host
        knows only depth and traits matter here, which are part of the key, so that this may be captured.
        """
        table, pool = self._table, self._pool
        n = len(tree.count)
        slot = slot_of[:n]
        logits = self._target.logits(hidden)  # [B + C, V]
        draws = draw(logits, DrawRows.of(tree, slot_of, traits, table.known, depth), self._sampling, table.history)
        verdict = verify(tree, draws.token[: tree.rows], depth)

        if depth:  # else there are roots alone, which live in pages
            nodes = verdict.accepted & (tree.depth > 0)  # [B]
            pool.move(*table.accepted_rows(tree, nodes, tree.node, slot, pool.tail_start))
            if self._drafter is not None:
                self._drafter.keep(depth, table, slot, tree, verdict.accepted)
        first = draws.token[tree.rows :]  # [C]
        table.gain(slot, verdict.tokens, verdict.length)
        if len(slot_of) > n:
            table.gain(slot_of[n:], first[:, None], torch.ones_like(first))
        results = bundle(
            verdict.tokens, verdict.length, first, verdict.accepted, tree.row, tree.parent, tree.depth, tree.column,
            draws.finite, proposed.source, proposed.path_prob, edge_prob(proposed) if depth else proposed.path_prob,
        )  # fmt: skip
        return Trace(tree, draws, logits, verdict, results)

    @torch.inference_mode()
    def commit(self, plan: StepPlan, verdict: Verdict) -> StepOutcome:
        """Bring what the step brought to the host."""
        assert self._trace is not None, "commit follows verify"
        trace, self._trace = self._trace, None
        early, self._early = self._early, None
        ahead = plan.again and self.runs_ahead
        prepares = self._drafter is not None and self._table.spare is not None
        results = Fetch(trace.results, reused=ahead or prepares)
        before, self._prepared = self._prepared, None
        if ahead:
            self._ahead = self._run_ahead(plan)
        if self._drafter is not None and prepares:
            self._prepared = self._watch()
            self._prepared.mark()
            self._drafter.prepare(plan, self._table)
            self._prepared.mark()
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
        speculate, select, verify_ = self._stopwatch.laps()
        speculate += sum(before.laps()) if before is not None else 0.0
        verify_ += sum(early.watch.laps()) if early is not None else 0.0
        return StepOutcome(
            plan=plan,
            tokens=tokens,
            first_tokens=first_tokens,
            logprobs=logprobs,
            first_logprobs=first_logprobs,
            drafted=drafted,
            failed=failed_slots(plan, found),
            shape=self._shape(plan, trace.tree.rows, context),
            times=PhaseTimes(speculate=speculate, select=select, verify=verify_, commit=self._clock.now() - fetched),
        )

    def close(self) -> None:
        """Let go of graphs: those of ranks that share the target hold collectives, and their group cannot end before them."""
        self._trace = self._ahead = self._early = None
        for captured in (self._passes, self._capture, self._choosing):
            captured.forget()

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
        nothing = CandidateTree.empty(len(slots), self._table.device)
        trace = self._check(after, nothing, nothing.token.bool(), max(self._known[s] for s in slots) + 1)
        watch.mark()
        return Ahead(slots, trace, watch)

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

    def _shape(self, plan: StepPlan, trees: int, context: int) -> StepShape:
        """What was computed; trees: rows of trees, padding included."""
        prompt = sum(c.length for c in plan.chunks)
        rows = self.padding.whole(trees, prompt)
        draft_rows, draft_context = self._drafter.work(plan) if self._drafter else ((), 0)
        return StepShape(rows, context, draft_rows, draft_context, prompt)


def _most_rows(plan: StepPlan, candidates: CandidateTree, count: int) -> int:
    """Rows that the trees of this step can have at most, by what the host knows; count: requests, padding included."""
    n, columns = candidates.token.shape
    nodes = min(max(plan.limits.nodes, 0), n * min(columns, MAX_NODES))
    return GraphPadding().trees(count, 0, nodes)


def _drawing_rows(plan: StepPlan, hidden: Tensor, more: int) -> Tensor:
    """Of all rows of the pass those that draw: the trees', the last ones of chunks, and `more` for padding.  [B + C, hidden]"""
    if not plan.chunks:
        return hidden
    rows = len(hidden) - sum(c.length for c in plan.chunks)
    ends = [end for end, c in zip(_ends(plan, rows), plan.chunks, strict=True) if c.draws]
    return hidden[torch.cat([torch.arange(rows, device=hidden.device), upload([*ends, *[0] * more], hidden.device)])]


def _ends(plan: StepPlan, first: int) -> list[int]:
    """The last row of every chunk; chunks follow `first` rows of trees."""
    ends = []
    for chunk in plan.chunks:
        first += chunk.length
        ends.append(first - 1)
    return ends
