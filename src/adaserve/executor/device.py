"""The real executor: runs the drafter and the target model on one device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from adaserve.cache.pool import KVPool
from adaserve.clock import Clock
from adaserve.models.decoder import Decoder
from adaserve.runtime.batch import TAIL_ROWS
from adaserve.runtime.logprobs import token_logprobs
from adaserve.runtime.sampling import DrawRows, Draws, draw
from adaserve.runtime.slots import SlotTable
from adaserve.runtime.table import SamplingTable
from adaserve.speculation.drafter import Drafter, Kept
from adaserve.speculation.verifier import verify
from adaserve.step import Drafted, PhaseTimes, StepOutcome, StepPlan, StepShape, TokenLogprobs, Verdict
from adaserve.tree import CandidateTree, DraftTree, edge_prob, pack


@dataclass(frozen=True)
class Trace:
    """What verification leaves for commit; draws and logits have the trees' rows first, then those of drawing chunks."""

    candidates: CandidateTree
    tree: DraftTree
    draws: Draws
    logits: Tensor  # [B + C, V]
    context: int
    verify_started: float


class DeviceExecutor:
    """Executes plans on the device where the target's weights live.

    slots: most requests at once; length: longest sequence. drafter None: nothing is ever proposed.
    """

    def __init__(self, *, target: Decoder, pool: KVPool, drafter: Drafter | None, slots: int, length: int, clock: Clock) -> None:
        self._target = target
        self._pool = pool
        self._drafter = drafter
        self._clock = clock
        self._table = SlotTable(slots=slots, length=length, page_size=pool.page_size, device=target.device)
        self._sampling = SamplingTable(slots, target.config.vocab_size, target.device)
        self._logprobs: dict[int, int] = {}  # slot -> alternatives asked for
        self._speculate_started = self._speculate_ended = 0.0
        self._trace: Trace | None = None

    @torch.inference_mode()
    def speculate(self, plan: StepPlan) -> CandidateTree:
        """Take in what the plan says of slots and pages, then let the drafter propose.  [n, N]"""
        self._speculate_started = self._clock.now()
        self._settle(plan)
        if self._drafter is None or (plan.depth == 0 and not plan.catch_up):
            candidates = CandidateTree.empty(len(plan.decoding), self._table.device)
        else:
            candidates = self._drafter.propose(plan, self._table)
        self._speculate_ended = self._clock.now()
        return candidates

    @torch.inference_mode()
    def verify(self, plan: StepPlan, candidates: CandidateTree, chosen: Tensor) -> Verdict:
        """One pass of the target over roots, chosen nodes and prompt chunks; draws a token at every row of the trees."""
        started = self._clock.now()
        table, device = self._table, self._table.device
        slot = torch.tensor(plan.decoding, dtype=torch.int64, device=device)  # [n]
        root_token = table.tokens[slot, table.known[slot] - 1]  # [n]
        tree = pack(candidates, chosen, root_token)
        batch = table.tree_batch(tree, plan.decoding, plan.chunks, self._pool.tail_start)
        hidden = self._target.forward(batch, self._pool)  # [B + chunk rows, hidden]
        drawing = [c for c in plan.chunks if c.draws]
        ends = [end for end, c in zip(_ends(plan, tree.rows), plan.chunks, strict=True) if c.draws]
        wanted = torch.cat([torch.arange(tree.rows, device=device), torch.tensor(ends, dtype=torch.int64, device=device)])
        logits = self._target.logits(hidden if len(wanted) == len(hidden) else hidden[wanted])  # [B + C, V]
        rows = DrawRows.of(tree, plan.decoding, tuple(c.slot for c in drawing), table.known, plan.depth)
        draws = draw(logits, rows, self._sampling, table.history)
        context = sum(c.start + c.length for c in plan.chunks)
        self._trace = Trace(candidates, tree, draws, logits, context, started)
        return verify(tree, draws.token[: tree.rows], plan.depth)

    @torch.inference_mode()
    def commit(self, plan: StepPlan, verdict: Verdict) -> StepOutcome:
        """Move the accepted paths' keys and values from tails to pages, append the tokens, and bring everything to the host."""
        assert self._trace is not None, "commit follows verify"
        trace, self._trace = self._trace, None
        table, tree = self._table, trace.tree
        started = self._clock.now()  # the CPU has finished verification by now
        slot = torch.tensor(plan.decoding, dtype=torch.int64, device=table.device)  # [n]
        row = (verdict.accepted & (tree.depth > 0)).nonzero()[:, 0]  # [m] accepted nodes
        owner = slot[tree.row[row]]
        context = trace.context + int(table.known[slot].sum())
        self._pool.move(
            self._pool.tail_start + owner * TAIL_ROWS + tree.node[row],
            table.page_rows(owner, table.known[owner] - 1 + tree.depth[row]),
        )
        drawing = [c for c in plan.chunks if c.draws]
        first = trace.draws.token[tree.rows :]  # [C]
        tokens = tuple(tuple(row[:length]) for row, length in zip(verdict.tokens.tolist(), verdict.length.tolist(), strict=True))
        first_tokens = tuple(first.tolist())
        drafted = _drafted(trace.candidates, tree, verdict.accepted)
        if self._drafter is not None:
            starts = tuple(zip((c.slot for c in drawing), first_tokens, strict=True))
            self._drafter.keep(plan, table, Kept(tree, verdict.accepted, tokens, starts, drafted))
        table.gain(slot, verdict.tokens, verdict.length)
        if drawing:
            begun = torch.tensor([c.slot for c in drawing], device=table.device)  # [C]
            table.gain(begun, first[:, None], torch.ones_like(first))
        ended = self._clock.now()
        return StepOutcome(
            plan=plan,
            tokens=tokens,
            first_tokens=first_tokens,
            logprobs=self._tree_logprobs(plan, verdict, trace),
            first_logprobs=self._first_logprobs(plan, trace),
            drafted=drafted,
            failed=self._failed(plan, verdict, trace),
            shape=self._shape(plan, tree, context),
            times=PhaseTimes(
                speculate=self._speculate_ended - self._speculate_started,
                select=trace.verify_started - self._speculate_ended,
                verify=started - trace.verify_started,
                commit=ended - started,
            ),
        )

    def _settle(self, plan: StepPlan) -> None:
        """Bookkeeping that comes before the passes: who left, who came, who owns which pages."""
        for slot in plan.released:
            self._sampling.release(slot)
            self._logprobs.pop(slot, None)
            if self._drafter is not None:
                self._drafter.release(slot)
        for placement in plan.placed:
            self._table.place(placement)
            self._sampling.place(placement)
            self._logprobs.pop(placement.slot, None)
            if placement.sampling.logprobs is not None:
                self._logprobs[placement.slot] = placement.sampling.logprobs
            if self._drafter is not None:
                self._drafter.place(placement)
        for grant in plan.grants:
            self._table.grant(grant)

    def _tree_logprobs(self, plan: StepPlan, verdict: Verdict, trace: Trace) -> tuple[tuple[TokenLogprobs, ...], ...]:
        if not self._logprobs:
            return ((),) * len(plan.decoding)
        found: list[tuple[TokenLogprobs, ...]] = []
        for i, slot in enumerate(plan.decoding):
            if slot in self._logprobs:
                row = (verdict.accepted & (trace.tree.row == i)).nonzero()[:, 0]  # the accepted path, root first
                found.append(token_logprobs(trace.logits[row], trace.draws.token[row], self._logprobs[slot]))
            else:
                found.append(())
        return tuple(found)

    def _first_logprobs(self, plan: StepPlan, trace: Trace) -> tuple[tuple[TokenLogprobs, ...], ...]:
        found: list[tuple[TokenLogprobs, ...]] = []
        drawing = [c for c in plan.chunks if c.draws]
        for row, chunk in enumerate(drawing, start=trace.tree.rows):
            if chunk.slot in self._logprobs:
                found.append(
                    token_logprobs(trace.logits[row : row + 1], trace.draws.token[row : row + 1], self._logprobs[chunk.slot])
                )
            else:
                found.append(())
        return tuple(found)

    def _failed(self, plan: StepPlan, verdict: Verdict, trace: Trace) -> tuple[int, ...]:
        """Slots whose accepted rows, or whose chunk's last row, had no finite logits."""
        bad = ~trace.draws.finite
        if not bool(bad.any()):
            return ()
        rows = trace.tree.rows
        owners = trace.tree.row[bad[:rows] & verdict.accepted].tolist()
        drawing = [c.slot for c in plan.chunks if c.draws]
        return (*{plan.decoding[i] for i in owners}, *(drawing[i] for i in bad[rows:].nonzero()[:, 0].tolist()))

    def _shape(self, plan: StepPlan, tree: DraftTree, context: int) -> StepShape:
        rows = tree.rows + sum(c.length for c in plan.chunks)
        return StepShape(rows, context, *self._drafter.work(plan)) if self._drafter else StepShape(rows, context)


def _ends(plan: StepPlan, first: int) -> list[int]:
    """The last row of every chunk; chunks follow `first` rows of trees."""
    ends = []
    for chunk in plan.chunks:
        first += chunk.length
        ends.append(first - 1)
    return ends


def _drafted(candidates: CandidateTree, tree: DraftTree, accepted: Tensor) -> Drafted:
    """Describe the verified nodes for learning and metrics."""
    node = (tree.depth > 0).nonzero()[:, 0]  # [m]
    row, column = tree.row[node], tree.column[node]
    edges = edge_prob(candidates)
    return Drafted(
        request=tuple(row.tolist()),
        depth=tuple(tree.depth[node].tolist()),
        source=tuple(candidates.source[row, column].tolist()),
        path_prob=tuple(candidates.path_prob[row, column].tolist()),
        edge_prob=tuple(edges[row, column].tolist()),
        reached=tuple(accepted[tree.parent[node]].tolist()),
        accepted=tuple(accepted[node].tolist()),
    )
