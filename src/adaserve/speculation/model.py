"""The model drafter: beam search over a small draft model whose own cache is kept between iterations.

One step's passes over the draft model, for requests that draft (w = 2, d = 3); `.` known tokens, `o` nodes of the beam:

    pass 1   . . root     the known tokens that the draft has not computed yet; the last row predicts the root's children
    pass 2   o o          the children that the beam kept; their keys go to the scratch tail
    pass 3   o o          and so on; the nodes of the last depth are proposed but never read by the draft

Catch-up chunks (prompts, d = 0 periods) ride along with pass 1, or on a GPU follow the target's pass: nobody drafts from them in
this step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from torch import Tensor

from adaserve.cache.pool import KVPool
from adaserve.kernels.trees import picked
from adaserve.models.decoder import Decoder
from adaserve.padding import places
from adaserve.runtime.capture import Capture, reach
from adaserve.runtime.joined import Joined
from adaserve.runtime.passes import Passes
from adaserve.runtime.slots import SlotTable
from adaserve.runtime.transfer import stage, upload
from adaserve.speculation.drafter import Gained
from adaserve.speculation.fused_growth import FusedGrowth
from adaserve.speculation.growth import GrowthByPasses, NativeGrowth
from adaserve.speculation.ranking import Ranking
from adaserve.step import Chunk, Placement, StepPlan, draft_work
from adaserve.tree import CandidateTree, DraftTree, Source


@dataclass(frozen=True)
class Growth:
    """What trees to grow: how deep, how wide, and whether ranked by the noise of the target's draws."""

    depth: int
    width: int
    coupled: bool


@dataclass(frozen=True)
class Prepared:
    """Trees of slots that were grown before a step asked for them, each to the full depth.  tree [>= p, D * w]"""

    slots: tuple[int, ...]
    growth: Growth
    tree: CandidateTree

    def serves(self, slots: Sequence[int], growth: Growth) -> bool:
        """Whether such trees are among these."""
        deep_enough = growth.depth <= self.growth.depth
        return deep_enough and replace(growth, depth=self.growth.depth) == self.growth and set(slots) <= set(self.slots)


class ModelDrafter:
    """Drafts with a decoder and a KV pool of its own; the pool's pages carry the same numbers as the target's.

    passes, capture: how the decoder is run. vocabulary: only the first so many tokens are ever proposed (a multiple of 16), None
    for all. Tokenizers number tokens in the order in which they were merged, about that of frequency, and a small draft spends
    most of a pass in its head.
    """

    def __init__(
        self, decoder: Decoder, pool: KVPool, passes: Passes, capture: Capture, slots: int, vocabulary: int | None = None
    ) -> None:
        self._pool = pool
        self._passes = passes
        self._capture = capture
        self._prepared: Prepared | None = None
        self._ranking = Ranking(slots, decoder.device)
        self._native = NativeGrowth.of(decoder, pool, vocabulary)
        plain = GrowthByPasses(decoder, pool, passes, vocabulary)
        self._by_passes = FusedGrowth(plain) if FusedGrowth.suits(decoder) else plain

    def compile_all(self) -> None:
        """On a GPU, have all kernels between the passes compiled, so that no request waits for it."""
        self._by_passes.prepare()

    def place(self, placement: Placement) -> None:
        """Remember how the request draws."""
        if self._prepared is not None and placement.slot in self._prepared.slots:
            self._prepared = None  # it is of the slot's former request
        self._ranking.place(placement)

    def release(self, slot: int) -> None:
        """What is kept for a slot, its rows in the pool and how its request draws, the next request overwrites."""

    def forget(self) -> None:
        """Trees that were grown ahead are of requests that have gone."""
        self._prepared = None

    def work(self, plan: StepPlan, catch_up: Sequence[Chunk]) -> tuple[tuple[int, ...], int]:
        """Rows of each draft pass, and the paged tokens that attention reads."""
        return draft_work(plan.drafting, catch_up, plan.depth, plan.width)

    def propose(self, plan: StepPlan, table: SlotTable) -> CandidateTree:
        """Run d beam steps of width w, all requests in one batch.  [n, d * w], or [places(n), d * w] if padded"""
        drafting = [chunk if plan.depth else None for chunk in plan.drafting]
        first = [chunk for chunk in drafting if chunk is not None]
        growth = self._growth(plan, tuple(chunk.slot for chunk in first))
        if table.spare is not None:
            return self._propose_padded(plan, drafting, first, table, growth)
        n, active = len(drafting), [i for i, chunk in enumerate(drafting) if chunk is not None]
        chunks = [*first, *plan.catch_up]
        if not chunks:
            return CandidateTree.empty(n, table.device)
        slot = stage([chunk.slot for chunk in first], table.device)  # [a] slots of the active requests
        room = stage([plan.room[i] for i in active], table.device)  # [a]
        tree = self._read_and_grow(chunks, slot, room, table, growth)
        return CandidateTree.empty(n, table.device) if tree is None else _spread(tree, active, n)

    def _propose_padded(
        self, plan: StepPlan, drafting: Sequence[Chunk | None], first: Sequence[Chunk], table: SlotTable, growth: Growth
    ) -> CandidateTree:
        """In shapes that the host knows beforehand: everybody reads two tokens, whether the draft knows the first or not."""
        count = places(len(drafting))
        self._read([Chunk(c.slot, c.start, c.length - 2) for c in first if c.length > 2], table)
        if not first:
            return CandidateTree.empty(count, table.device)
        slots = tuple(chunk.slot for chunk in first)
        prepared, self._prepared = self._prepared, None
        # Who has more than two tokens to read had less of them when the trees were prepared.
        current = all(chunk.length <= 2 for chunk in first)
        if prepared is None or not current or not prepared.serves(slots, growth):
            rooms = [most for most, chunk in zip(plan.room, drafting, strict=True) if chunk is not None]
            prepared = Prepared(slots, growth, self._speculate(slots, rooms, table, growth, _reach(first)))
        place = {slot: row for row, slot in enumerate(prepared.slots)}
        idle = [-1] * (count - len(drafting))
        rows = [-1 if chunk is None else place[chunk.slot] for chunk in drafting]
        return picked(prepared.tree, [*rows, *idle], [*plan.room, *idle], growth.depth * growth.width)

    def prepare(self, plan: StepPlan, table: SlotTable) -> None:
        """Catch up, then speculate for those who did in this step as deep and wide again, and whose prompts are complete now.

        `propose` takes what turns out to be asked for.
        """
        self._prepared = None
        if table.spare is None:
            return
        self._read(plan.catch_up, table)
        drafting = [chunk for chunk in plan.drafting if chunk is not None]
        if not drafting or not plan.depth:
            return
        read = {chunk.slot: chunk.start + chunk.length for chunk in plan.catch_up}
        begun = [c for c in plan.chunks if c.draws and read.get(c.slot) == c.start + c.length]  # what the draft has read, too
        chunks = [*drafting, *begun]
        slots = tuple(chunk.slot for chunk in chunks)
        longest = _reach(chunks) + plan.depth + 1
        rooms = [plan.depth] * len(slots)
        growth = self._growth(plan, slots)
        self._prepared = Prepared(slots, growth, self._speculate(slots, rooms, table, growth, longest))

    def _read(self, chunks: Sequence[Chunk], table: SlotTable) -> None:
        """Compute the draft's keys and values of known tokens."""
        if chunks:
            self._passes(Joined(table, None, chunks, self._pool.tail_start), _reach(chunks))

    def _growth(self, plan: StepPlan, slots: tuple[int, ...]) -> Growth:
        """The trees that a step grows for these slots; noise costs nothing where nobody draws at random."""
        return Growth(plan.depth, plan.width, plan.coupled and self._ranking.draws(slots))

    def _speculate(
        self, slots: Sequence[int], rooms: Sequence[int], table: SlotTable, growth: Growth, longest: int
    ) -> CandidateTree:
        """The whole speculation of slots whose draft lags by two tokens at most, as one captured call.  [places(a), d * w]

        rooms: deepest node that each may use. The spare slot, which the table must have, fills the places that are too many. The
        result is to be read before the next call.
        """
        assert table.spare is not None, "padding has a slot"
        bound, count = reach(longest), len(slots)
        idle = places(count) - count
        slot, room = stage([*slots, *[table.spare] * idle], table.device), stage([*rooms, *[0] * idle], table.device)

        def run(slot: Tensor, room: Tensor) -> CandidateTree:
            hidden = self._passes.plain(table.last_batch(slot, self._pool.tail_start), bound)  # [2 a, hidden]
            ranked = self._ranking.of(slot, table, growth.depth, growth.coupled)
            return self._by_passes(hidden[1::2], slot, room, table, ranked, growth.depth, growth.width, bound)

        return self._capture(("speculate", growth, bound), run, slot, room)

    def keep(self, depth: int, table: SlotTable, slot: Tensor, tree: DraftTree, accepted: Tensor) -> None:
        """Move accepted nodes' keys and values from tail to pages; the last depth's, and others' nodes, were never computed."""
        if depth < 2:
            return
        read = accepted & (tree.depth > 0) & (tree.depth < depth) & (tree.source != Source.NGRAM)  # [B]
        # A node's column is its row in the tail.
        self._pool.move(*table.accepted_rows(tree, read, tree.column, slot, self._pool.tail_start))

    def learn(self, plan: StepPlan, gained: Gained) -> None:
        """Nothing: the tokens are read when they are drafted from."""

    def _read_and_grow(
        self, chunks: Sequence[Chunk], slot: Tensor, room: Tensor, table: SlotTable, growth: Growth
    ) -> CandidateTree | None:
        """Read all chunks, and grow the trees of slot [a] from the first a of them; None where a is 0.  [a, d * w]"""
        ranked = self._ranking.of(slot, table, growth.depth, growth.coupled)
        if self._native is not None and len(slot):
            tree = self._native(chunks, slot, room, table, ranked, growth.depth, growth.width)
            if tree is not None:
                return tree
        longest = _reach(chunks)
        hidden = self._passes(Joined(table, None, chunks, self._pool.tail_start), longest)  # [B, hidden]
        if not len(slot):
            return None
        last = [end - 1 for end in accumulate(chunk.length for chunk in chunks[: len(slot)])]  # [a]
        roots = hidden[upload(last, table.device)]  # [a, hidden]
        return self._by_passes(roots, slot, room, table, ranked, growth.depth, growth.width, longest)


def _reach(chunks: Sequence[Chunk]) -> int:
    """The longest context of any row."""
    return max(chunk.start + chunk.length for chunk in chunks)


def _spread(tree: CandidateTree, active: list[int], n: int) -> CandidateTree:
    """Give the requests that did not draft rows of padding: [a, N] -> [n, N]."""
    if len(active) == n:
        return tree
    index = upload(active, tree.token.device)

    def spread(x: Tensor) -> Tensor:
        return x.new_zeros(n, x.shape[1]).index_copy(0, index, x)

    return CandidateTree(
        token=spread(tree.token),
        parent=spread(tree.parent + 1) - 1,  # padding hangs from the root
        depth=tree.depth[:1].expand(n, -1),
        path_prob=spread(tree.path_prob),
        source=spread(tree.source),
    )
