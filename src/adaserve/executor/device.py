"""The real executor: runs the drafter and the target model on one device.

Between speculate and commit nothing waits for the device; commit waits once, for the step's results. On a GPU that takes shapes
which the host knows beforehand, so trees are padded to the most that a step may choose (SlotTable.spare); on a CPU, where asking
costs nothing, they hold exactly what was chosen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adaserve.cache.pool import KVPool
from adaserve.clock import Clock
from adaserve.models.decoder import Decoder
from adaserve.runtime.logprobs import token_logprobs
from adaserve.runtime.passes import Passes
from adaserve.runtime.sampling import DrawRows, Draws, draw
from adaserve.runtime.slots import SlotTable
from adaserve.runtime.stopwatch import Stopwatch
from adaserve.runtime.table import SamplingTable
from adaserve.runtime.transfer import fetch, upload
from adaserve.speculation.drafter import Drafter, Gained
from adaserve.speculation.verifier import verify
from adaserve.step import Drafted, PhaseTimes, StepOutcome, StepPlan, StepShape, TokenLogprobs, Verdict
from adaserve.tree import MAX_NODES, CandidateTree, DraftTree, edge_prob, pack


@dataclass(frozen=True)
class Trace:
    """What verification leaves for commit; draws and logits have the trees' rows first, then those of drawing chunks."""

    candidates: CandidateTree
    tree: DraftTree
    draws: Draws
    logits: Tensor  # [B + C, V]


@dataclass(frozen=True)
class Found:
    """A step's results on the host.

    tokens [n, D + 1], length [n], first [C]: as in Verdict, and the chunks' tokens. accepted, row, parent, depth, column [B]: the
    trees' rows. finite [B + C]. source, path_prob, edge_prob [n, N]: the candidates.
    """

    tokens: Tensor
    length: Tensor
    first: Tensor
    accepted: Tensor
    row: Tensor
    parent: Tensor
    depth: Tensor
    column: Tensor
    finite: Tensor
    source: Tensor
    path_prob: Tensor
    edge_prob: Tensor

    @property
    def nodes(self) -> Tensor:
        """The packed rows of draft nodes, without roots and padding.  # [m]"""
        return ((self.depth > 0) & (self.row < len(self.length))).nonzero()[:, 0]


class DeviceExecutor:
    """Executes plans on the device where the target's weights live.

    passes: how the target is run. table: of the slots. drafter None: nothing is ever proposed.
    """

    def __init__(
        self,
        *,
        target: Decoder,
        pool: KVPool,
        passes: Passes,
        drafter: Drafter | None,
        table: SlotTable,
        clock: Clock,
        stopwatch: Stopwatch,
    ) -> None:
        self._target = target
        self._pool = pool
        self._passes = passes
        self._drafter = drafter
        self._table = table
        self._clock = clock
        self._stopwatch = stopwatch
        self._sampling = SamplingTable(table.known.shape[0], target.config.vocab_size, target.device)
        self._known: dict[int, int] = {}  # slot -> known tokens, as far as the host has heard
        self._logprobs: dict[int, int] = {}  # slot -> alternatives asked for
        self._trace: Trace | None = None

    @torch.inference_mode()
    def speculate(self, plan: StepPlan) -> CandidateTree:
        """Take in what the plan says of slots and pages, then let the drafter propose.  [n, N]"""
        self._stopwatch.mark()
        self._settle(plan)
        if self._drafter is None or (plan.depth == 0 and not plan.catch_up):
            candidates = CandidateTree.empty(len(plan.decoding), self._table.device)
        else:
            candidates = self._drafter.propose(plan, self._table)
        self._stopwatch.mark()
        return candidates

    @torch.inference_mode()
    def verify(self, plan: StepPlan, candidates: CandidateTree, chosen: Tensor) -> Verdict:
        """One pass of the target over roots, chosen nodes and prompt chunks; draws a token at every row of the trees."""
        self._stopwatch.mark()
        table, device = self._table, self._table.device
        slot = upload(plan.decoding, device)  # [n]
        root_token = table.tokens[slot, table.known[slot] - 1]  # [n]
        tree = pack(candidates, chosen, root_token, None if table.spare is None else _most_rows(plan, candidates))
        batch = table.tree_batch(tree, plan.decoding, plan.chunks, self._pool.tail_start)
        longest = max((*(self._known[s] for s in plan.decoding), *(c.start + c.length for c in plan.chunks)))
        hidden = self._passes(batch, longest)  # [B + chunk rows, hidden]
        drawing = [c for c in plan.chunks if c.draws]
        ends = [end for end, c in zip(_ends(plan, tree.rows), plan.chunks, strict=True) if c.draws]
        wanted = torch.cat([torch.arange(tree.rows, device=device), upload(ends, device)])
        logits = self._target.logits(hidden if len(wanted) == len(hidden) else hidden[wanted])  # [B + C, V]
        rows = DrawRows.of(tree, plan.decoding, tuple(c.slot for c in drawing), table.known, plan.depth)
        draws = draw(logits, rows, self._sampling, table.history)
        self._trace = Trace(candidates, tree, draws, logits)
        return verify(tree, draws.token[: tree.rows], plan.depth)

    @torch.inference_mode()
    def commit(self, plan: StepPlan, verdict: Verdict) -> StepOutcome:
        """Move the accepted paths' keys and values from tails to pages, append the tokens, and bring everything to the host."""
        assert self._trace is not None, "commit follows verify"
        trace, self._trace = self._trace, None
        table, tree = self._table, trace.tree
        self._stopwatch.mark()  # a CPU has finished verification by now
        slot = upload(plan.decoding, table.device)  # [n]
        nodes = verdict.accepted & (tree.depth > 0)  # [B]
        self._pool.move(*table.accepted_rows(tree, nodes, tree.node, plan.decoding, self._pool.tail_start))
        if self._drafter is not None:
            self._drafter.keep(plan, table, tree, verdict.accepted)
        first = trace.draws.token[tree.rows :]  # [C]
        table.gain(slot, verdict.tokens, verdict.length)
        drawing = [c for c in plan.chunks if c.draws]
        if drawing:
            table.gain(upload([c.slot for c in drawing], table.device), first[:, None], torch.ones_like(first))
        self._stopwatch.mark()
        found = Found(
            *fetch(
                verdict.tokens, verdict.length, first, verdict.accepted, tree.row, tree.parent, tree.depth, tree.column,
                trace.draws.finite, trace.candidates.source, trace.candidates.path_prob, edge_prob(trace.candidates),
            )
        )  # fmt: skip
        fetched = self._clock.now()
        tokens = tuple(tuple(row[:n]) for row, n in zip(found.tokens.tolist(), found.length.tolist(), strict=True))
        first_tokens = tuple(found.first.tolist())
        drafted = _drafted(found)
        context = sum(c.start + c.length for c in plan.chunks) + sum(self._known[s] for s in plan.decoding)
        for s, gained in (*zip(plan.decoding, tokens, strict=True), *((c.slot, (0,)) for c in drawing)):
            self._known[s] += len(gained)
        if self._drafter is not None:
            starts = tuple(zip((c.slot for c in drawing), first_tokens, strict=True))
            self._drafter.learn(plan, Gained(tokens, starts, drafted))
        logprobs, first_logprobs = self._tree_logprobs(plan, found, trace), self._first_logprobs(plan, trace)
        speculate, select, verify_, commit = self._stopwatch.laps()
        return StepOutcome(
            plan=plan,
            tokens=tokens,
            first_tokens=first_tokens,
            logprobs=logprobs,
            first_logprobs=first_logprobs,
            drafted=drafted,
            failed=_failed(plan, found),
            shape=self._shape(plan, found, context),
            times=PhaseTimes(speculate=speculate, select=select, verify=verify_, commit=commit + self._clock.now() - fetched),
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
            self._known[placement.slot] = len(placement.tokens)
            self._sampling.place(placement)
            self._logprobs.pop(placement.slot, None)
            if placement.sampling.logprobs is not None:
                self._logprobs[placement.slot] = placement.sampling.logprobs
            if self._drafter is not None:
                self._drafter.place(placement)
        for grant in plan.grants:
            self._table.grant(grant)

    def _tree_logprobs(self, plan: StepPlan, found: Found, trace: Trace) -> tuple[tuple[TokenLogprobs, ...], ...]:
        if not self._logprobs:
            return ((),) * len(plan.decoding)
        described: list[tuple[TokenLogprobs, ...]] = []
        for i, slot in enumerate(plan.decoding):
            if slot in self._logprobs:
                path = (found.accepted.bool() & (found.row == i)).nonzero()[:, 0]  # the accepted path, root first
                row = upload(path.tolist(), self._table.device)
                described.append(token_logprobs(trace.logits[row], trace.draws.token[row], self._logprobs[slot]))
            else:
                described.append(())
        return tuple(described)

    def _first_logprobs(self, plan: StepPlan, trace: Trace) -> tuple[tuple[TokenLogprobs, ...], ...]:
        described: list[tuple[TokenLogprobs, ...]] = []
        drawing = [c for c in plan.chunks if c.draws]
        for row, chunk in enumerate(drawing, start=trace.tree.rows):
            if chunk.slot in self._logprobs:
                described.append(
                    token_logprobs(trace.logits[row : row + 1], trace.draws.token[row : row + 1], self._logprobs[chunk.slot])
                )
            else:
                described.append(())
        return tuple(described)

    def _shape(self, plan: StepPlan, found: Found, context: int) -> StepShape:
        rows = len(plan.decoding) + len(found.nodes) + sum(c.length for c in plan.chunks)
        return StepShape(rows, context, *self._drafter.work(plan)) if self._drafter else StepShape(rows, context)


def _most_rows(plan: StepPlan, candidates: CandidateTree) -> int:
    """Rows that the trees of this step can have at most, by what the host knows."""
    n, columns = candidates.token.shape
    return n + min(max(plan.limits.nodes, 0), n * min(columns, MAX_NODES))


def _ends(plan: StepPlan, first: int) -> list[int]:
    """The last row of every chunk; chunks follow `first` rows of trees."""
    ends = []
    for chunk in plan.chunks:
        first += chunk.length
        ends.append(first - 1)
    return ends


def _failed(plan: StepPlan, found: Found) -> tuple[int, ...]:
    """Slots whose accepted rows, or whose chunk's last row, had no finite logits."""
    bad = ~found.finite.bool()
    if not bool(bad.any()):
        return ()
    rows = len(found.row)
    owners = found.row[bad[:rows] & found.accepted.bool()].tolist()
    drawing = [c.slot for c in plan.chunks if c.draws]
    return (*{plan.decoding[i] for i in owners}, *(drawing[i] for i in bad[rows:].nonzero()[:, 0].tolist()))


def _drafted(found: Found) -> Drafted:
    """Describe the verified nodes for learning and metrics."""
    node = found.nodes  # [m]
    row, column, accepted = found.row[node], found.column[node], found.accepted.bool()
    return Drafted(
        request=tuple(row.tolist()),
        depth=tuple(found.depth[node].tolist()),
        source=tuple(found.source[row, column].tolist()),
        path_prob=tuple(found.path_prob[row, column].tolist()),
        edge_prob=tuple(found.edge_prob[row, column].tolist()),
        reached=tuple(accepted[found.parent[node]].tolist()),
        accepted=tuple(accepted[node].tolist()),
    )
