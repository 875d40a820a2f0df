"""The target's check of draft trees: one pass over them and the prompt chunks, a draw at every row, and the walk.

On a GPU this is one captured call while there are few rows. Prompt chunks, and the trees of many requests, are of too many sizes
for that. Then it is three, and capturing the pass, which takes longest, does not depend on what its rows are:

    rows of the trees | the pass, for buckets of sizes | draw, walk, and keeping what was accepted
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from adaserve.cache.pool import KVPool
from adaserve.executor.trace import Trace
from adaserve.kernels.trees import compile_all, edge_prob, pack
from adaserve.models.decoder import Decoder
from adaserve.padding import GraphPadding, places, power_of_two
from adaserve.runtime.batch import ForwardBatch
from adaserve.runtime.capture import Capture, reach
from adaserve.runtime.joined import Joined
from adaserve.runtime.passes import Passes
from adaserve.runtime.sampling import DrawRows, draw
from adaserve.runtime.slots import SlotTable
from adaserve.runtime.table import SamplingTable, Traits
from adaserve.runtime.transfer import bundle, stage, upload
from adaserve.speculation.drafter import Drafter
from adaserve.speculation.verifier import verify
from adaserve.step import StepPlan
from adaserve.tree import MAX_NODES, CandidateTree, DraftTree

WHOLE = 64
"""Most rows of trees that are checked in one captured call."""


@dataclass(frozen=True)
class TreeCheck:
    """Checks the trees of a step, and computes its prompt chunks, on the device where the target's weights live.

    Waits for nothing where the table has a spare slot: then trees are padded to the most that a step may choose, and requests to
    one of a few numbers by the spare slot. Without, they hold exactly what was chosen.

    pool: the target's. passes, capture: how it is run. drafter: keeps what was accepted of its trees; None: nothing is ever
    proposed. table, sampling: of the slots.
    """

    target: Decoder
    pool: KVPool
    passes: Passes
    capture: Capture
    drafter: Drafter | None
    table: SlotTable
    sampling: SamplingTable

    def __call__(self, plan: StepPlan, candidates: CandidateTree, chosen: Tensor, longest: int, described: bool) -> Trace:
        """Enqueue the device's work, in captured calls where it may be captured.

        chosen [n, N] bool; there may be rows of padding, places(n) in all. longest: most context of a row, in tokens. described:
        whether log-probabilities are asked for, for which logits must last until commit. Edited and described logits depend on
        more than a key can say. The trace is to be read before the next call.
        """
        drawing = tuple(c.slot for c in plan.chunks if c.draws)
        slots = plan.decoding + drawing
        spare, device = self.table.spare, self.table.device
        traits, n = self.sampling.traits(slots), len(plan.decoding)
        if spare is None or traits.edits_logits or described:
            size = None if spare is None else _most_rows(plan, candidates, n)
            slot_of = upload(slots, device)  # [n + C]
            proposed = candidates.resized(n)
            tree = self._pack(size, slot_of[:n], chosen[:n], *vars(proposed).values())
            joined = Joined(self.table, self._rows(tree, slot_of[:n]), plan.chunks, self.pool.tail_start)
            hidden = _drawing_rows(plan, self.passes(joined, longest), 0)
            return self._draw(tree, proposed, plan.depth, traits, hidden, slot_of)

        count = places(n)
        idle = [spare] * (count - n)  # the spare slot, for places that are too many
        size = _most_rows(plan, candidates, count)
        slot = stage([*plan.decoding, *idle], device)  # [n]
        if len(chosen) < count:
            candidates, chosen = candidates.resized(count), pad(chosen, (0, 0, 0, count - len(chosen)))
        padded = chosen, *vars(candidates).values()
        if not plan.chunks and size <= WHOLE:
            bound = reach(longest)

            def check(slot: Tensor, chosen: Tensor, *proposed: Tensor) -> Trace:
                tree = self._pack(size, slot, chosen, *proposed)
                hidden = self.passes.plain(self._rows(tree, slot), bound)
                return self._draw(tree, CandidateTree(*proposed), plan.depth, traits, hidden, slot).without_logits()

            return self.capture(("verify", size, plan.depth, bound, traits), check, slot, *padded)

        def rows(slot: Tensor, chosen: Tensor, *proposed: Tensor) -> ForwardBatch:
            return self._rows(self._pack(size, slot, chosen, *proposed), slot)

        def check_rest(hidden: Tensor, slot_of: Tensor, chosen: Tensor, *proposed: Tensor) -> Trace:
            tree = self._pack(size, slot_of[:count], chosen, *proposed)  # once more: less than copying what was packed
            return self._draw(tree, CandidateTree(*proposed), plan.depth, traits, hidden, slot_of).without_logits()

        trees = self.capture(("rows", size), rows, slot, *padded) if count else None
        joined = Joined(self.table, trees, plan.chunks, self.pool.tail_start)
        more = [spare] * (power_of_two(len(drawing)) - len(drawing))
        hidden = _drawing_rows(plan, self.passes(joined, longest), len(more))
        if not slots:  # prompts alone, none of which ends here: there is nothing to capture
            return check_rest(hidden, upload((), device), *padded)
        slot_of = stage([*plan.decoding, *idle, *drawing, *more], device)  # [n + C]
        return self.capture(("draw", size, plan.depth, traits), check_rest, hidden, slot_of, *padded)

    @torch.inference_mode()
    def prepare(self) -> None:
        """Have the kernels of trees compiled, so that no request waits for it, on a tree of the spare slot.

        Nothing changes: padding gains nothing, and what is not accepted stays where it is.
        """
        assert self.table.spare is not None, "only padded trees take these kernels"
        compile_all(self.table.device)
        slot = torch.full((1,), self.table.spare, dtype=torch.int64, device=self.table.device)  # [1]
        node = torch.zeros(1, 1, dtype=torch.int64, device=slot.device)  # [1, 1]
        tree = self._pack(2, slot, node.bool(), node, node - 1, node + 1, node.double(), node)
        self._rows(tree, slot)
        verdict, nothing = verify(tree, torch.zeros_like(tree.token), 1), tree.depth < 0
        self.pool.move(*self.table.accepted_rows(tree, nothing, tree.node, slot, self.pool.tail_start))
        if self.drafter is not None:
            self.drafter.keep(2, self.table, slot, tree, nothing)
        self.table.gain(slot, verdict.tokens, verdict.length)

    def forget(self) -> None:
        """Let go of what was captured, as Capture does."""
        self.passes.forget()
        self.capture.forget()

    def _pack(self, size: int | None, slot: Tensor, chosen: Tensor, *proposed: Tensor) -> DraftTree:
        return pack(CandidateTree(*proposed), chosen, self.table.last_tokens(slot), size)

    def _rows(self, tree: DraftTree, slot: Tensor) -> ForwardBatch:
        return self.table.tree_batch(tree, slot, self.pool.tail_start)

    def _draw(
        self, tree: DraftTree, proposed: CandidateTree, depth: int, traits: Traits, hidden: Tensor, slot_of: Tensor
    ) -> Trace:
        """Draw at every row, walk the trees, and keep what was accepted.

        hidden [B + C, hidden]. slot_of [n + C]: slots of requests, then of chunks that draw, padding included. Of what the host
        knows only depth and traits matter here, which are part of the key, so that this may be captured.
        """
        table, pool = self.table, self.pool
        n = len(tree.count)
        slot = slot_of[:n]
        logits = self.target.logits(hidden)  # [B + C, V]
        draws = draw(logits, DrawRows.of(tree, slot_of, traits, table.known, depth), self.sampling, table.history)
        verdict = verify(tree, draws.token[: tree.rows], depth)

        if depth:  # else there are roots alone, which live in pages
            nodes = verdict.accepted & (tree.depth > 0)  # [B]
            pool.move(*table.accepted_rows(tree, nodes, tree.node, slot, pool.tail_start))
            if self.drafter is not None:
                self.drafter.keep(depth, table, slot, tree, verdict.accepted)
        first = draws.token[tree.rows :]  # [C]
        table.gain(slot, verdict.tokens, verdict.length)
        if len(slot_of) > n:
            table.gain(slot_of[n:], first[:, None], torch.ones_like(first))
        results = bundle(
            verdict.tokens, verdict.length, first, verdict.accepted, tree.row, tree.parent, tree.depth, tree.column,
            draws.finite, proposed.source, proposed.path_prob, edge_prob(proposed) if depth else proposed.path_prob,
        )  # fmt: skip
        return Trace(tree, draws, logits, verdict, results)


def _most_rows(plan: StepPlan, candidates: CandidateTree, count: int) -> int:
    """Rows that the trees of this step can have at most, by what the host knows; count: requests, padding included."""
    nodes = min(max(plan.limits.nodes, 0), len(plan.decoding) * min(candidates.token.shape[1], MAX_NODES))
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
