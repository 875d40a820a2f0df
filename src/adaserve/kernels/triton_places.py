"""Where the rows of a pass stand, before it and after it, as one Triton kernel each; the twins are places.NAME_reference.

They are a dozen or two operations on a few hundred numbers, each of them a launch, or two microseconds in a graph.
"""

from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaserve.kernels.places import Known, Laid, Rows
from adaserve.runtime.batch import TAIL_ROWS
from adaserve.runtime.transfer import upload
from adaserve.tree import DraftTree

_BLOCK = 128
"""Rows of a program."""

_GAINED = 16
"""Gained tokens that a program writes at once."""


@triton.jit(
    do_not_specialize=["given", "owners", "count", "total", "groups", "idle", "length", "page_count", "page_size"],
    do_not_specialize_on_alignment=["token", "position", "prefix", "mask", "dest", "begins", "slots"],
)
def _lay_kernel(
    rows, start, slot, token, position, prefix, mask, dest, begins, slots, chunks, tokens, pages,
    given, owners, count, total, groups, idle, length, page_count, page_size, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live, tree = row < total, row < given
    first, ends, holders = chunks, chunks + count, chunks + 2 * count + 1
    at = (row * 0).to(tl.int64)  # of rows of chunks: which token it is, and whose
    holder, known = at, row < 0
    for chunk in range(count):
        begin = tl.load(ends + chunk)
        mine = (row >= begin) & (row < tl.load(ends + chunk + 1))
        at = tl.where(mine, tl.load(first + chunk) + row - begin, at)
        holder = tl.where(mine, tl.load(holders + chunk), holder)
        known = known | mine
    page = tl.load(pages + holder * page_count + at // page_size, mask=known, other=0)
    place = tl.where(known, page * page_size + at % page_size, idle)
    after = tl.where(known, at + 1, 0)
    text = tl.load(tokens + holder * length + at, mask=known, other=0)
    tl.store(rows + row, tl.where(tree, tl.load(token + row, mask=tree, other=0), text), mask=live)
    tl.store(rows + total + row, tl.where(tree, tl.load(position + row, mask=tree, other=0), at), mask=live)
    tl.store(rows + 2 * total + row, tl.where(tree, tl.load(prefix + row, mask=tree, other=0), after), mask=live)
    tl.store(rows + 3 * total + row, tl.load(mask + row, mask=tree, other=0), mask=live)
    tl.store(rows + 4 * total + row, tl.where(tree, tl.load(dest + row, mask=tree, other=0), place), mask=live)

    group = row  # the trees', then one a chunk, then such as are empty, behind all rows
    theirs, used = group < owners, owners + count
    begin = tl.load(begins + group, mask=theirs, other=0)
    begin += tl.load(ends + tl.minimum(tl.maximum(group - owners, 0), count), mask=group >= owners, other=0)
    tl.store(start + group, begin, mask=group <= groups)
    holder = tl.load(slots + group, mask=theirs, other=0)
    holder += tl.load(holders + group - owners, mask=(group >= owners) & (group < used), other=0)
    tl.store(slot + group, holder, mask=group < used)


def lay_rows(out: Laid, trees: Laid | None, known: Known, idle: int) -> None:
    """Arguments as of places.lay_rows."""
    total, groups = len(out.rows[0]), len(out.slot)
    given, owners = (0, 0) if trees is None else (len(trees.rows[0]), len(trees.slot))
    ends = accumulate(known.lengths, initial=given)
    chunks = upload([*known.starts, *ends, *known.slots], out.start.device)  # one copy for all
    source = out if trees is None else trees
    numbers = given, owners, len(known.slots), total, groups, idle, known.tokens.shape[1], known.pages.shape[1], known.page_size
    grid = (triton.cdiv(max(total, groups + 1), _BLOCK),)
    _lay_kernel[grid](
        out.rows[0],
        out.start,
        out.slot,
        *source.rows,
        source.start,
        source.slot,
        chunks,
        known.tokens,
        known.pages,
        *numbers,
        _BLOCK,
    )


# Compiled anew for none of these: a compilation in the middle of serving takes a second.
_NUMBERS = ["size", "count", "page_count", "page_size", "tail_start", "width", "length"]
_TABLES = ["row_of", "depth", "node", "counts", "slots", "spare", "known", "pages", "out", "start", "owners", "accepted", "place"]


@triton.jit
def _paged(pages, page_count, page_size, owner, position, mask):
    """The pool rows of paged positions; before the first one it is the last of all, as an index of -1 has it."""
    at = tl.where(position < 0, page_count * page_size - 1, position)
    return tl.load(pages + owner * page_count + at // page_size, mask=mask, other=0) * page_size + at % page_size


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_TABLES)
def _tree_kernel(
    row_of, depth, node, counts, slots, spare, known, pages, out, start, owners, size, count, page_count, page_size, tail_start,
    TAIL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, BLOCK)
    row = tl.program_id(0) * BLOCK + lane
    live = row < size
    padding = tl.load(spare)
    request = tl.load(row_of + row, mask=live, other=0)
    owner = tl.load(slots + request, mask=live & (request < count), other=0) + tl.where(request < count, 0, padding)
    prefix = tl.load(known + owner, mask=live, other=1)
    deep = tl.load(depth + row, mask=live, other=1)
    tail = tail_start + owner * TAIL + tl.load(node + row, mask=live, other=0)
    root = live & (deep == 0)
    dest = tl.where(root, _paged(pages, page_count, page_size, owner, prefix - 1, root), tail)
    tl.store(out + row, prefix - 1 + deep, mask=live)
    tl.store(out + size + row, prefix, mask=live)
    tl.store(out + 2 * size + row, dest, mask=live)
    if tl.program_id(0) == 0:
        before = padding * 0  # rows of the requests that came before
        for base in range(0, count, BLOCK):
            group = base + lane
            there = group < count
            rows = tl.where(there, tl.load(counts + group, mask=there, other=0) + 1, 0)
            tl.store(start + group, before + tl.cumsum(rows) - rows, mask=there)
            tl.store(owners + group, tl.load(slots + group, mask=there, other=0), mask=there)
            before += tl.sum(rows)
        tl.store(start + count, before)
        tl.store(start + count + 1, padding * 0 + size)
        tl.store(owners + count, padding)


def tree_rows(
    known: Tensor, pages: Tensor, page_size: int, tree: DraftTree, slot: Tensor, spares: Tensor, tail_start: int
) -> tuple[Rows, Tensor, Tensor]:
    """Arguments and result as of places.tree_rows, of trees that may end in padding."""
    n, size, device = len(slot), tree.rows, slot.device
    out = torch.empty(3, size, dtype=torch.int64, device=device)  # [3, B]
    start = torch.empty(n + 2, dtype=torch.int64, device=device)  # [n + 2]
    owners = torch.empty(n + 1, dtype=torch.int64, device=device)  # [n + 1]
    _tree_kernel[(triton.cdiv(max(size, 1), _BLOCK),)](
        tree.row, tree.depth, tree.node, tree.count, slot.contiguous(), spares, known, pages, out, start, owners, size, n,
        pages.shape[1], page_size, tail_start, TAIL_ROWS, _BLOCK,
    )  # fmt: skip
    position, prefix, dest = out.unbind()
    return (tree.token, position, prefix, tree.mask, dest), start, owners


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_TABLES)
def _move_kernel(
    row_of, depth, accepted, place, slots, spare, known, pages, out, size, count, page_count, page_size, tail_start,
    TAIL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = row < size
    moves = live & (tl.load(accepted + row, mask=live, other=0) != 0)
    request = tl.load(row_of + row, mask=moves, other=0)
    padding = tl.load(spare)
    owner = tl.load(slots + request, mask=moves & (request < count), other=0) + tl.where(request < count, 0, padding)
    position = tl.load(known + owner, mask=moves, other=1) - 1 + tl.load(depth + row, mask=moves, other=0)
    idle = tail_start + padding * TAIL
    source = tail_start + owner * TAIL + tl.load(place + row, mask=moves, other=0)
    dest = _paged(pages, page_count, page_size, owner, position, moves)
    tl.store(out + row, tl.where(moves, source, idle), mask=live)
    tl.store(out + size + row, tl.where(moves, dest, idle), mask=live)


def padded_moves(
    known: Tensor, pages: Tensor, page_size: int, tree: DraftTree, accepted: Tensor, place: Tensor, slot: Tensor, spares: Tensor,
    tail_start: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Arguments and result as of places.padded_moves."""
    size = tree.rows
    out = torch.empty(2, size, dtype=torch.int64, device=slot.device)  # [2, B]
    _move_kernel[(triton.cdiv(max(size, 1), _BLOCK),)](
        tree.row, tree.depth, accepted.contiguous().view(torch.uint8), place, slot.contiguous(), spares, known, pages, out, size,
        len(slot), pages.shape[1], page_size, tail_start, TAIL_ROWS, _BLOCK,
    )  # fmt: skip
    source, dest = out.unbind()
    return source, dest


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=["tokens", "known", "slots", "gained", "count"])
def _gain_kernel(tokens, known, slots, spare, gained, count, length, width, BLOCK: tl.constexpr):
    request = tl.program_id(0)
    slot = tl.load(slots + request)
    if slot != tl.load(spare):
        begin = tl.load(known + slot)
        for base in range(0, width, BLOCK):
            at = base + tl.arange(0, BLOCK)
            news = tl.load(gained + request * width + at, mask=at < width, other=0)
            tl.store(tokens + slot * length + begin + at, news, mask=at < width)
        tl.store(known + slot, begin + tl.load(count + request))


def padded_gain(tokens: Tensor, known: Tensor, slot: Tensor, spares: Tensor, gained: Tensor, count: Tensor) -> None:
    """Arguments as of places.padded_gain."""
    n, width = gained.shape
    if n:
        fields = slot.contiguous(), spares, gained.contiguous(), count.contiguous()
        _gain_kernel[(n,)](tokens, known, *fields, tokens.shape[1], width, _GAINED)
