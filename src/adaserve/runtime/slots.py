"""SlotTable: what every slot's request knows and owns, as tensors that model passes are built from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adaserve.runtime.batch import TAIL_ROWS, ForwardBatch
from adaserve.runtime.sampling import History
from adaserve.runtime.transfer import upload
from adaserve.step import Chunk, PageGrant, Placement
from adaserve.tree import DraftTree


class SlotTable:
    """Known tokens and pages of all slots.

    tokens [slots, L] int64: known tokens of every slot, of which the first `known` [slots] int64 count.
    pages [slots, P] int64: the slot's pages in order of position.

    spare_page: a page that nobody owns. With it the table has one more slot, `spare`, to which padding belongs: then no shape
    depends on what the device finds, and the host need not wait for it. Without, batches hold exactly what there is.
    """

    def __init__(
        self, *, slots: int, length: int, page_size: int, device: torch.device | str = "cpu", spare_page: int | None = None
    ) -> None:
        self.page_size = page_size
        self.spare = None if spare_page is None else slots
        self.spare_page = spare_page
        slots += spare_page is not None
        self.tokens = torch.zeros(slots, length + 64, dtype=torch.int64, device=device)  # [slots, L]
        self.known = torch.zeros(slots, dtype=torch.int64, device=device)  # [slots]
        self.pages = torch.zeros(slots, -(-(length + 64) // page_size), dtype=torch.int64, device=device)  # [slots, P]
        if spare_page is not None:
            self.pages[-1] = spare_page
        self._spares = torch.tensor([] if self.spare is None else [self.spare], dtype=torch.int64, device=device)  # [0] or [1]

    @property
    def device(self) -> torch.device:
        """Where the tables live."""
        return self.tokens.device

    @property
    def history(self) -> History:
        """The known tokens, as sampling wants them."""
        return History(self.tokens, self.known)

    def place(self, placement: Placement) -> None:
        """A request comes to a slot with its known tokens."""
        count = len(placement.tokens)
        self.tokens[placement.slot, :count] = upload(placement.tokens, self.device)
        if self.spare_page is not None:
            self.pages[placement.slot].fill_(self.spare_page)  # what is written beyond the granted pages harms nobody
        self.known[placement.slot].fill_(count)  # an assigned number would be copied from the host, which waits

    def grant(self, grants: Sequence[PageGrant]) -> None:
        """Slots own more pages from now on; all are written by one copy, for requests of like lengths need pages together."""
        cells = [(g.slot, index, page) for g in grants for index, page in enumerate(g.pages, g.first)]
        if cells:
            slot, index, page = upload(list(zip(*cells, strict=True)), self.device)  # [m] each
            self.pages[slot, index] = page

    def gain(self, slot: Tensor, tokens: Tensor, length: Tensor) -> None:
        """Append tokens [n, D + 1], of which the first `length` [n] count, to the known tokens of `slot` [n]."""
        offset = torch.arange(tokens.shape[1], device=self.device)  # [D + 1]
        # What lies beyond the known tokens means nothing, so the padding may be written too.
        self.tokens[slot[:, None], self.known[slot][:, None] + offset] = tokens
        self.known[slot] += length
        if self.spare is not None:
            self.known[self.spare].fill_(0)  # padding gains nothing

    def forget(self, slot: Tensor) -> None:
        """The last known token of each slot [m] is known no more."""
        self.known[slot] -= 1

    def page_rows(self, slot: Tensor, position: Tensor) -> Tensor:
        """The pool rows of paged positions: slot [m], position [m] -> [m]."""
        page = self.pages[slot, position // self.page_size]
        return page * self.page_size + position % self.page_size

    def known_batch(self, chunks: Sequence[Chunk], tail_start: int) -> ForwardBatch:
        """Rows of known tokens, causal by position; one group a chunk."""
        start = upload(_starts([c.length for c in chunks]), self.device)
        return self._batch([self._known_rows(chunks)], start, upload([c.slot for c in chunks], self.device), tail_start)

    def last_batch(self, slot: Tensor, tail_start: int) -> ForwardBatch:
        """The last two known tokens of every slot [n], a group each: what a draft reads to go on, whether it knows the first of
        them or not. Where there is only one it stands twice.
        """
        n = slot.shape[0]
        owner = slot.repeat_interleave(2)  # [2 n]
        back = torch.arange(2, 0, -1, device=self.device).repeat(n)  # [2 n]
        position = (self.known[owner] - back).clamp(min=0)  # [2 n]
        dest = self.page_rows(owner, position)
        rows = self.tokens[owner, position], position, position + 1, torch.zeros_like(position), dest
        return self._batch([rows], torch.arange(0, 2 * n + 1, 2, device=self.device), slot, tail_start)

    def tree_batch(self, tree: DraftTree, decoding: Tensor, tail_start: int) -> ForwardBatch:
        """The rows of the trees, masked by ancestors; a group each, and one of the padding.

        decoding [n]: slots. The root is a known token: its key and value go to its page. Draft nodes live in the tail until they
        are accepted.
        """
        owners = torch.cat([decoding, self._spares])  # [n] or [n + 1]
        slot = owners[tree.row]  # [B]
        known = self.known[slot]  # [B]
        tail = tail_start + slot * TAIL_ROWS + tree.node
        dest = torch.where(tree.depth == 0, self.page_rows(slot, known - 1), tail)
        rows = (tree.token, known - 1 + tree.depth, known, tree.mask, dest)
        padding = (tree.count.sum() + len(decoding)).expand(len(self._spares))  # [1], where padding begins, or [0]
        end = torch.full((1,), tree.rows, device=self.device)  # [1]
        return self._batch([rows], torch.cat([tree.root, padding, end]), owners, tail_start)

    def with_chunks(self, batch: ForwardBatch, chunks: Sequence[Chunk]) -> ForwardBatch:
        """The rows of a batch, then those of prompt chunks, causal by position; one group a chunk."""
        if not chunks:
            return batch
        rows = (batch.token, batch.position, batch.prefix, batch.mask, batch.dest)
        ends = upload(_starts([c.length for c in chunks]), self.device) + len(batch.token)  # [C + 1]
        slot = torch.cat([batch.slot, upload([c.slot for c in chunks], self.device)])
        return self._batch([rows, self._known_rows(chunks)], torch.cat([batch.start[:-1], ends]), slot, batch.tail_start)

    def accepted_rows(
        self, tree: DraftTree, accepted: Tensor, place: Tensor, decoding: Tensor, tail_start: int
    ) -> tuple[Tensor, Tensor]:
        """Pool rows that accepted nodes move from and to, [m] each, before the gained tokens are known.

        accepted [B] bool: nodes, no roots; place [B]: their rows in their slot's tail; decoding [n]: slots. With a spare slot m
        is B, and what is not accepted moves from the spare tail to itself.
        """
        slot = torch.cat([decoding, self._spares])[tree.row]  # [B]
        source = tail_start + slot * TAIL_ROWS + place  # [B]
        dest = self.page_rows(slot, self.known[slot] - 1 + tree.depth)  # [B]
        if self.spare is None:
            row = accepted.nonzero()[:, 0]  # [m]
            return source[row], dest[row]
        idle = tail_start + self.spare * TAIL_ROWS
        return torch.where(accepted, source, idle), torch.where(accepted, dest, idle)

    def beam_batch(self, slot: Tensor, token: Tensor, mask: Tensor, tail: Tensor, depth: int, tail_start: int) -> ForwardBatch:
        """The rows of one draft step: slot [n]; token, mask [n, w]; tail [w]: their rows in the tail; one group a request."""
        n, width = token.shape
        known = self.known[slot].repeat_interleave(width)  # [n * w]
        dest = (tail_start + slot[:, None] * TAIL_ROWS + tail).flatten()
        rows = (token.flatten(), known - 1 + depth, known, mask.flatten(), dest)
        return self._batch([rows], torch.arange(0, (n + 1) * width, width, device=self.device), slot, tail_start)

    def _known_rows(self, chunks: Sequence[Chunk]) -> tuple[Tensor, ...]:
        """Token, position, prefix, mask and dest of every row of the chunks, [m] each."""
        slots, starts, lengths = upload(
            [[c.slot for c in chunks], [c.start for c in chunks], [c.length for c in chunks]], self.device
        )
        total = sum(c.length for c in chunks)
        slot = slots.repeat_interleave(lengths, output_size=total)  # [m]
        shift = starts - lengths.cumsum(0) + lengths  # [C]
        position = torch.arange(total, device=self.device) + shift.repeat_interleave(lengths, output_size=total)  # [m]
        dest = self.page_rows(slot, position)
        return self.tokens[slot, position], position, position + 1, torch.zeros_like(position), dest

    def _batch(self, rows: list[tuple[Tensor, ...]], start: Tensor, slot: Tensor, tail_start: int) -> ForwardBatch:
        joined = rows[0] if len(rows) == 1 else tuple(torch.cat(part) for part in zip(*rows, strict=True))
        # Kernels read them by address: a view that repeats one number, as masks of a beam of width 1 are, would not do.
        token, position, prefix, mask, dest = (part.contiguous() for part in joined)
        return ForwardBatch(
            token=token,
            position=position,
            prefix=prefix,
            mask=mask,
            dest=dest,
            start=start,
            slot=slot,
            pages=self.pages,
            page_size=self.page_size,
            tail_start=tail_start,
        )


def _starts(lengths: list[int]) -> list[int]:
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return starts
