"""SlotTable: what every slot's request knows and owns, as tensors that model passes are built from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adaserve.kernels.beam_step import Next
from adaserve.kernels.places import (
    Known,
    Laid,
    Rows,
    beam_rows,
    gain_tokens,
    known_rows,
    last_tokens,
    moved_rows,
    padded_gain,
    padded_moves,
    page_rows,
    tree_rows,
)
from adaserve.runtime.batch import ForwardBatch, Tiles
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
        if any(g.pages for g in grants):
            width = self.pages.shape[1]
            cells = [g.slot * width + g.first + more for g in grants for more in range(len(g.pages))]
            cell, page = upload([*cells, *[page for g in grants for page in g.pages]], self.device).view(2, -1)  # [m] each
            self.pages.view(-1).scatter_(0, cell, page)

    def gain(self, slot: Tensor, tokens: Tensor, length: Tensor) -> None:
        """Append tokens [n, D + 1], of which the first `length` [n] count, to the known tokens of `slot` [n]."""
        if self.spare is None:
            gain_tokens(self.tokens, self.known, slot, tokens, length)
        else:
            padded_gain(self.tokens, self.known, slot, self._spares, tokens, length)

    def forget(self, slot: Tensor) -> None:
        """The last known token of each slot [m] is known no more."""
        self.known[slot] -= 1

    def last_tokens(self, slot: Tensor) -> Tensor:
        """The last known token of every slot [n].  [n]"""
        return last_tokens(self.tokens, self.known, slot)

    def known_batch(self, chunks: Sequence[Chunk], tail_start: int) -> ForwardBatch:
        """Rows of known tokens, causal by position; one group a chunk."""
        return self.batch_of(known_rows(self.chunks(chunks)), tail_start)

    def last_batch(self, slot: Tensor, tail_start: int) -> ForwardBatch:
        """The last two known tokens of every slot [n], a group each: what a draft reads to go on, whether it knows the first of
        them or not. Where there is only one it stands twice.
        """
        n = slot.shape[0]
        owner = slot.repeat_interleave(2)  # [2 n]
        back = torch.arange(2, 0, -1, device=self.device).repeat(n)  # [2 n]
        position = (self.known[owner] - back).clamp(min=0)  # [2 n]
        dest = page_rows(self.pages, self.page_size, owner, position)
        rows = self.tokens[owner, position], position, position + 1, torch.zeros_like(position), dest
        return self._batch(rows, torch.arange(0, 2 * n + 1, 2, device=self.device), slot, tail_start)

    def tree_batch(self, tree: DraftTree, decoding: Tensor, tail_start: int) -> ForwardBatch:
        """The rows of the trees, masked by ancestors; a group each, and one of the padding.

        decoding [n]: slots. The root is a known token: its key and value go to its page. Draft nodes live in the tail until they
        are accepted.
        """
        owned = self.known, self.pages, self.page_size, tree, decoding, self._spares
        return self._batch(*tree_rows(*owned, tail_start), tail_start)

    def with_chunks(self, batch: ForwardBatch, chunks: Sequence[Chunk]) -> ForwardBatch:
        """The rows of a batch, then those of prompt chunks, causal by position; one group a chunk."""
        if not chunks:
            return batch
        return self.batch_of(laid_of(batch).then(known_rows(self.chunks(chunks))), batch.tail_start)

    def chunks(self, chunks: Sequence[Chunk]) -> Known:
        """Chunks of known tokens in these tables."""
        slots, starts, lengths = [c.slot for c in chunks], [c.start for c in chunks], [c.length for c in chunks]
        return Known(self.tokens, self.pages, self.page_size, slots, starts, lengths)

    def accepted_rows(
        self, tree: DraftTree, accepted: Tensor, place: Tensor, decoding: Tensor, tail_start: int
    ) -> tuple[Tensor, Tensor]:
        """Pool rows that accepted nodes move from and to, [m] each, before the gained tokens are known.

        accepted [B] bool: nodes, no roots; place [B]: their rows in their slot's tail; decoding [n]: slots. With a spare slot m
        is B, and what is not accepted moves from the spare tail to itself.
        """
        owned = self.known, self.pages, self.page_size, tree
        if self.spare is None:
            return moved_rows(*owned, accepted, place, decoding, tail_start)
        return padded_moves(*owned, accepted, place, decoding, self._spares, tail_start)

    def beam_batch(self, slot: Tensor, token: Tensor, mask: Tensor, tail: Tensor, depth: int, tail_start: int) -> ForwardBatch:
        """The rows of one draft step: slot [n]; token, mask [n, w]; tail [w]: their rows in the tail; one group a request."""
        rows, start = beam_rows(self.known, slot, token, mask, tail, depth, tail_start)
        return self._batch(rows, start, slot, tail_start)

    def next_batch(self, rows: Next, slot: Tensor, tail_start: int, height: int, splits: int) -> ForwardBatch:
        """The same from what `beam_step` says of it, in tiles of so many rows and contexts in so many shares."""
        return self._batch(rows.rows, rows.start, slot, tail_start, Tiles(*rows.tiles, height, splits))

    def batch_of(self, laid: Laid, tail_start: int) -> ForwardBatch:
        """Rows that are laid already, as a batch over these tables; not copied."""
        return self._batch(laid.rows, laid.start, laid.slot, tail_start)

    def _batch(self, rows: Rows, start: Tensor, slot: Tensor, tail_start: int, tiles: Tiles | None = None) -> ForwardBatch:
        # Kernels read them by address: a view that repeats one number, as masks of a beam of width 1 are, would not do.
        token, position, prefix, mask, dest = (part.contiguous() for part in rows)
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
            tiles=tiles,
        )


def laid_of(batch: ForwardBatch) -> Laid:
    """The rows of a batch and their groups."""
    return Laid((batch.token, batch.position, batch.prefix, batch.mask, batch.dest), batch.start, batch.slot)
