"""Where the rows of a pass stand: index arithmetic over the tables of all slots, a few dozen numbers at a time.

tokens [slots, L], known [slots], pages [slots, P]: as in runtime.slots.SlotTable. tail_start: pool row of slot 0's tail.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from adaserve.kernels import native
from adaserve.runtime.batch import TAIL_ROWS
from adaserve.runtime.transfer import upload
from adaserve.tree import DraftTree

Rows = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Token, position, prefix, mask and dest, [m] each, of a ForwardBatch."""


def page_rows(pages: Tensor, page_size: int, slot: Tensor, position: Tensor) -> Tensor:
    """The pool rows of paged positions: slot [m], position [m] -> [m]."""
    return pages[slot, position // page_size] * page_size + position % page_size


@dataclass(frozen=True)
class Known:
    """Chunks of known tokens, of at least one each, and the tables that they stand in; numbers of the chunks are the host's."""

    tokens: Tensor
    pages: Tensor
    page_size: int
    slots: Sequence[int]
    starts: Sequence[int]
    lengths: Sequence[int]


@dataclass(frozen=True)
class Laid:
    """Rows, [R] each, and the start [G + 1] and slot [G] of their groups."""

    rows: Rows
    start: Tensor
    slot: Tensor

    def then(self, other: "Laid") -> "Laid":
        """These rows, then the others: their groups as well."""
        rows = torch.cat([torch.stack(self.rows), torch.stack(other.rows)], 1)  # [5, R + R']
        token, position, prefix, mask, dest = rows
        start = torch.cat([self.start[:-1], other.start + len(self.rows[0])])
        return Laid((token, position, prefix, mask, dest), start, torch.cat([self.slot, other.slot]))


def known_rows_reference(known: Known) -> Laid:
    """The plain torch twin of `known_rows`, for any device."""
    device = known.tokens.device
    owner, first, length = upload([known.slots, known.starts, known.lengths], device)  # [C] each
    total = sum(known.lengths)
    slot = owner.repeat_interleave(length, output_size=total)  # [m]
    shift = first - length.cumsum(0) + length  # [C]
    position = torch.arange(total, device=device) + shift.repeat_interleave(length, output_size=total)  # [m]
    dest = page_rows(known.pages, known.page_size, slot, position)
    rows = known.tokens[slot, position], position, position + 1, torch.zeros_like(position), dest
    return Laid(rows, upload([*accumulate(known.lengths, initial=0)], device), owner)


def known_rows(known: Known) -> Laid:
    """The rows of chunks of known tokens, causal by position; one group a chunk."""
    tokens, pages = known.tokens, known.pages
    run = native.function("places", "known_rows", "pipipiiip") if native.readable(tokens, pages) else None
    if run is None:
        return known_rows_reference(known)
    total, count = sum(known.lengths), len(known.slots)
    chunks = array("q", [*known.slots, *known.starts, *known.lengths])
    out = torch.empty(5 * total + 2 * count + 1, dtype=torch.int64)
    table = pages.data_ptr(), pages.shape[1], known.page_size
    run(chunks.buffer_info()[0], count, tokens.data_ptr(), tokens.shape[1], *table, total, out.data_ptr())
    token, position, prefix, mask, dest, start, slot = out.split([*[total] * 5, count + 1, count])
    return Laid((token, position, prefix, mask, dest), start, slot)


def lay_rows_reference(out: Laid, trees: Laid | None, known: Known, idle: int) -> None:
    """The plain torch twin of `lay_rows`, for any device."""
    chunks = known_rows_reference(known)
    laid = chunks if trees is None else trees.then(chunks)
    rows, groups = len(laid.rows[0]), len(laid.slot)
    for place, given, padding in zip(out.rows, laid.rows, (0, 0, 0, 0, idle), strict=True):
        place[:rows] = given
        place[rows:].fill_(padding)
    out.start[: groups + 1] = laid.start
    out.start[groups + 1 :].fill_(rows)
    out.slot[:groups] = laid.slot


def lay_rows(out: Laid, trees: Laid | None, known: Known, idle: int) -> None:
    """Write the rows of trees, if there are any, then those of chunks, to `out`, which may hold more: idle ones and empty groups.

    out.rows: those of one tensor [5, R]. idle: the pool row that idle rows write to.
    """
    if out.start.is_cuda:
        from adaserve.kernels import triton_places

        triton_places.lay_rows(out, trees, known, idle)
    else:
        lay_rows_reference(out, trees, known, idle)


def beam_rows_reference(
    known: Tensor, slot: Tensor, token: Tensor, mask: Tensor, tail: Tensor, depth: int, tail_start: int
) -> tuple[Rows, Tensor]:
    """The plain torch twin of `beam_rows`, for any device."""
    n, width = token.shape
    prefix = known[slot].repeat_interleave(width)  # [n * w]
    dest = (tail_start + slot[:, None] * TAIL_ROWS + tail).flatten()
    start = torch.arange(0, (n + 1) * width, width, device=known.device)
    return (token.flatten(), prefix - 1 + depth, prefix, mask.flatten(), dest), start


def beam_rows(
    known: Tensor, slot: Tensor, token: Tensor, mask: Tensor, tail: Tensor, depth: int, tail_start: int
) -> tuple[Rows, Tensor]:
    """The rows of one draft step, then start [n + 1] of their groups.

    slot [n]; token, mask [n, w]: of the nodes; tail [w]: their rows in the tail.
    """
    run = native.function("places", "beam_rows", "pipipiip") if native.readable(known, slot, tail) else None
    if run is None:
        return beam_rows_reference(known, slot, token, mask, tail, depth, tail_start)
    n, width = token.shape
    out = torch.empty(3 * n * width + n + 1, dtype=torch.int64)
    run(slot.data_ptr(), n, tail.data_ptr(), width, known.data_ptr(), depth, tail_start, out.data_ptr())
    position, prefix, dest, start = out.split([*[n * width] * 3, n + 1])
    return (token.flatten(), position, prefix, mask.flatten(), dest), start


def tree_rows_reference(
    known: Tensor, pages: Tensor, page_size: int, tree: DraftTree, slot: Tensor, spares: Tensor, tail_start: int
) -> tuple[Rows, Tensor, Tensor]:
    """The plain torch twin of `tree_rows`, for any device."""
    owners = torch.cat([slot, spares])  # [n] or [n + 1]
    owner = owners[tree.row]  # [B]
    prefix = known[owner]  # [B]
    tail = tail_start + owner * TAIL_ROWS + tree.node
    dest = torch.where(tree.depth == 0, page_rows(pages, page_size, owner, prefix - 1), tail)
    padding = (tree.count.sum() + len(slot)).expand(len(spares))  # [1], where padding begins, or [0]
    end = torch.full((1,), tree.rows, device=known.device)  # [1]
    return (tree.token, prefix - 1 + tree.depth, prefix, tree.mask, dest), torch.cat([tree.root, padding, end]), owners


def tree_rows(
    known: Tensor, pages: Tensor, page_size: int, tree: DraftTree, slot: Tensor, spares: Tensor, tail_start: int
) -> tuple[Rows, Tensor, Tensor]:
    """The rows of packed trees of slot [n], then start and slot of their groups: [n + 1] and [n], or one more of each.

    spares: [0], or [1], the slot of padding, which the trees then may end in and which is the last group.
    """
    if len(spares) and tree.row.is_cuda:
        from adaserve.kernels import triton_places

        return triton_places.tree_rows(known, pages, page_size, tree, slot, spares, tail_start)
    fields = tree.row, tree.depth, tree.node
    exact = not len(spares) and native.readable(*fields, tree.count, known, pages, slot)
    run = native.function("places", "tree_rows", "pppippippiiip") if exact else None
    if run is None:
        return tree_rows_reference(known, pages, page_size, tree, slot, spares, tail_start)
    n, count = len(slot), tree.rows
    out = torch.empty(3 * count + n + 1, dtype=torch.int64)
    rows = *(x.data_ptr() for x in fields), count, tree.count.data_ptr()
    table = known.data_ptr(), pages.data_ptr(), pages.shape[1], page_size
    run(*rows, slot.data_ptr(), n, *table, tail_start, out.data_ptr())
    position, prefix, dest, start = out.split([count, count, count, n + 1])
    return (tree.token, position, prefix, tree.mask, dest), start, slot


def node_rows(
    known: Tensor, pages: Tensor, page_size: int, tree: DraftTree, place: Tensor, owners: Tensor, tail_start: int
) -> tuple[Tensor, Tensor]:
    """Pool rows where nodes' keys and values are, and where they belong once they are accepted: [B] each.

    place [B]: rows in their slot's tail; owners: slots of the requests, and of padding where there is any.
    """
    owner = owners[tree.row]  # [B]
    dest = page_rows(pages, page_size, owner, known[owner] - 1 + tree.depth)  # [B]
    return tail_start + owner * TAIL_ROWS + place, dest


def moved_rows_reference(
    known: Tensor, pages: Tensor, page_size: int, tree: DraftTree, accepted: Tensor, place: Tensor, slot: Tensor, tail_start: int
) -> tuple[Tensor, Tensor]:
    """The plain torch twin of `moved_rows`, for any device."""
    source, dest = node_rows(known, pages, page_size, tree, place, slot, tail_start)
    row = accepted.nonzero()[:, 0]  # [m]
    return source[row], dest[row]


def moved_rows(
    known: Tensor, pages: Tensor, page_size: int, tree: DraftTree, accepted: Tensor, place: Tensor, slot: Tensor, tail_start: int
) -> tuple[Tensor, Tensor]:
    """Of `node_rows` those of accepted [B] nodes, no roots, of trees without padding: [m] each."""
    suits = native.readable(tree.row, tree.depth, known, pages, accepted, place, slot)
    run = native.function("places", "moved_rows", "ppppipppiiipp") if suits else None
    if run is None:
        return moved_rows_reference(known, pages, page_size, tree, accepted, place, slot, tail_start)
    count = tree.rows
    out = torch.empty(2 * count, dtype=torch.int64)
    moved = array("q", [0])
    rows = accepted.data_ptr(), tree.row.data_ptr(), tree.depth.data_ptr(), place.data_ptr(), count
    table = known.data_ptr(), pages.data_ptr(), pages.shape[1], page_size
    run(*rows, slot.data_ptr(), *table, tail_start, out.data_ptr(), moved.buffer_info()[0])
    return out[: moved[0]], out[count : count + moved[0]]


def padded_moves_reference(
    known: Tensor, pages: Tensor, page_size: int, tree: DraftTree, accepted: Tensor, place: Tensor, slot: Tensor, spares: Tensor,
    tail_start: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The plain torch twin of `padded_moves`, for any device."""
    source, dest = node_rows(known, pages, page_size, tree, place, torch.cat([slot, spares]), tail_start)
    idle = tail_start + spares * TAIL_ROWS  # [1]
    return torch.where(accepted, source, idle), torch.where(accepted, dest, idle)


def padded_moves(
    known: Tensor, pages: Tensor, page_size: int, tree: DraftTree, accepted: Tensor, place: Tensor, slot: Tensor, spares: Tensor,
    tail_start: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`node_rows` of accepted [B] nodes, no roots; what is not accepted moves from the spare slot's tail to itself: [B] each.

    spares [1]: the slot of padding, in which the trees may end.
    """
    arguments = known, pages, page_size, tree, accepted, place, slot, spares, tail_start
    if accepted.is_cuda:
        from adaserve.kernels import triton_places

        return triton_places.padded_moves(*arguments)
    return padded_moves_reference(*arguments)


def gain_tokens_reference(tokens: Tensor, known: Tensor, slot: Tensor, gained: Tensor, count: Tensor) -> None:
    """The plain torch twin of `gain_tokens`, for any device."""
    offset = torch.arange(gained.shape[1], device=known.device)  # [D + 1]
    # What lies beyond the known tokens means nothing, so the padding may be written too.
    tokens[slot[:, None], known[slot][:, None] + offset] = gained
    known[slot] += count


def gain_tokens(tokens: Tensor, known: Tensor, slot: Tensor, gained: Tensor, count: Tensor) -> None:
    """Append gained [n, D + 1], of which the first `count` [n] count, to the known tokens of `slot` [n], no slot twice."""
    readable = native.readable(tokens, known, slot, gained, count)
    run = native.function("places", "gain_tokens", "pipippip") if readable else None
    if run is None:
        gain_tokens_reference(tokens, known, slot, gained, count)
        return
    n, width = gained.shape
    news = slot.data_ptr(), n, gained.data_ptr(), width, count.data_ptr()
    run(*news, tokens.data_ptr(), tokens.shape[1], known.data_ptr())


def padded_gain_reference(tokens: Tensor, known: Tensor, slot: Tensor, spares: Tensor, gained: Tensor, count: Tensor) -> None:
    """The plain torch twin of `padded_gain`, for any device."""
    gain_tokens_reference(tokens, known, slot, gained, count)  # the spare slot may be there many times
    known.index_fill_(0, spares, 0)  # an assigned number would be copied from the host, which waits


def padded_gain(tokens: Tensor, known: Tensor, slot: Tensor, spares: Tensor, gained: Tensor, count: Tensor) -> None:
    """The same where the slot of padding, spares [1], may be among them, as often as it likes: it gains nothing.

    What stands among its tokens means nothing.
    """
    if known.is_cuda:
        from adaserve.kernels import triton_places

        triton_places.padded_gain(tokens, known, slot, spares, gained, count)
    else:
        padded_gain_reference(tokens, known, slot, spares, gained, count)


def last_tokens_reference(tokens: Tensor, known: Tensor, slot: Tensor) -> Tensor:
    """The plain torch twin of `last_tokens`, for any device."""
    return tokens[slot, known[slot] - 1]


def last_tokens(tokens: Tensor, known: Tensor, slot: Tensor) -> Tensor:
    """The last known token of every slot [n]; something, where there is none.  [n]"""
    run = native.function("places", "last_tokens", "pipipp") if native.readable(tokens, known, slot) else None
    if run is None:
        return last_tokens_reference(tokens, known, slot)
    last = torch.empty_like(slot)
    run(slot.data_ptr(), len(slot), tokens.data_ptr(), tokens.shape[1], known.data_ptr(), last.data_ptr())
    return last
