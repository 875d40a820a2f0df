"""Where the rows of a pass stand, written to where a captured pass reads them, as one Triton kernel.

It is two dozen operations on a few hundred numbers, each of them a launch. The twin is places.lay_rows_reference.
"""

from itertools import accumulate

import triton
import triton.language as tl

from adaserve.kernels.places import Known, Laid
from adaserve.runtime.transfer import upload

_BLOCK = 128
"""Rows of a program."""


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
