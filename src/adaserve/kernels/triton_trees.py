"""Packing, walking and picking of trees, and their edges, as one Triton kernel each.

They are dozens of operations on a few hundred numbers, each of them a kernel of two microseconds. The twins, which are the
specification, are tree.pack, trees.walk_reference, trees.picked_reference and tree.edge_prob. Packed trees lie one after the
other, so a program that has one of them counts the nodes of those before it:

    program of request i    rows i + (nodes of 0 ... i - 1) and on | the last program: rows of padding
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaserve.runtime.transfer import upload
from adaserve.tree import MAX_NODES, ROOT, CandidateTree, DraftTree

_FEWEST = 64
"""Columns that a program holds at least: other numbers of them would be compiled anew."""

_BLOCK = 1024
"""Numbers that a program goes through at once."""

# Compiled anew for none of these: a compilation in the middle of serving takes a second.
_FIELDS = ["token", "parent", "depth", "source", "chosen", "root_token", "packed", "counts", "path_prob", "edge"]


@triton.jit
def _total(numbers, end, BLOCK: tl.constexpr):
    """The sum of the first `end` numbers."""
    sums = tl.zeros((BLOCK,), tl.int64)
    for base in range(0, end, BLOCK):
        at = base + tl.arange(0, BLOCK)
        sums += tl.load(numbers + at, mask=at < end, other=0)
    return tl.sum(sums)


@triton.jit(do_not_specialize=["columns", "size"], do_not_specialize_on_alignment=_FIELDS)
def _pack_kernel(
    token, parent, depth, source, chosen, root_token, packed, counts, columns, size, COLUMNS: tl.constexpr, ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    request, count = tl.program_id(0).to(tl.int64), tl.num_programs(0) - 1
    start = request + _total(chosen, request * columns, BLOCK)
    if request == count:
        for base in range(start, size, BLOCK):
            row = base + tl.arange(0, BLOCK)
            live = row < size
            nothing = tl.zeros((BLOCK,), tl.int64)
            tl.store(packed + row, nothing, mask=live)
            tl.store(packed + size + row, row, mask=live)
            tl.store(packed + 2 * size + row, nothing + count, mask=live)
            tl.store(packed + 3 * size + row, nothing + 1, mask=live)
            for field in range(4, 8):
                tl.store(packed + field * size + row, nothing, mask=live)
    else:
        column = tl.arange(0, COLUMNS)
        live = column < columns
        at = request * columns + column
        mine = tl.load(chosen + at, mask=live, other=0).to(tl.int64)
        node = tl.cumsum(mine) - mine
        above = tl.load(parent + at, mask=live, other=-1).to(tl.int32)
        top = above < 0
        up = tl.where(top, column, above)  # a child of the root stands for its own parent: it gathers its own bit again
        begin = tl.where(top, start, start + 1 + tl.gather(node, up, 0))
        mask = tl.where(mine > 0, 1 << node, 0)
        for _ in tl.static_range(ROUNDS):  # as tree.ancestor_mask does
            mask = mask | tl.gather(mask, up, 0)
            up = tl.gather(up, up, 0)
        row = start + 1 + node
        taken = (mine > 0) & (row < size)
        tl.store(packed + row, tl.load(token + at, mask=taken, other=0), mask=taken)
        tl.store(packed + size + row, begin, mask=taken)
        tl.store(packed + 2 * size + row, request, mask=taken)
        tl.store(packed + 3 * size + row, tl.load(depth + at, mask=taken, other=0), mask=taken)
        tl.store(packed + 4 * size + row, node, mask=taken)
        tl.store(packed + 5 * size + row, mask, mask=taken)
        tl.store(packed + 6 * size + row, column.to(tl.int64), mask=taken)
        tl.store(packed + 7 * size + row, tl.load(source + at, mask=taken, other=0), mask=taken)
        held = start < size
        tl.store(packed + start, tl.load(root_token + request), mask=held)
        tl.store(packed + size + start, start, mask=held)
        tl.store(packed + 2 * size + start, request, mask=held)
        for field in range(3, 8):
            tl.store(packed + field * size + start, request * 0, mask=held)
        tl.store(counts + request, tl.sum(mine))


def pack(candidates: CandidateTree, chosen: Tensor, root_token: Tensor, size: int) -> DraftTree:
    """Arguments and result as of tree.pack; between one and trees.MOST_COLUMNS columns."""
    n, columns = chosen.shape
    packed = torch.empty(8, size, dtype=torch.int64, device=chosen.device)  # [8, B]
    count = torch.empty(n, dtype=torch.int64, device=chosen.device)  # [n]
    fields = [x.contiguous() for x in (candidates.token, candidates.parent, candidates.depth, candidates.source)]
    block = max(_FEWEST, triton.next_power_of_2(columns))
    _pack_kernel[(n + 1,)](
        *fields, chosen.contiguous().view(torch.uint8), root_token.contiguous(), packed, count, columns, size, block,
        (min(block, MAX_NODES) - 1).bit_length(), _BLOCK,
    )  # fmt: skip
    rows = packed.unbind()
    return DraftTree(rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7], count)


@triton.jit(
    do_not_specialize=["size", "width"],
    do_not_specialize_on_alignment=["token", "parent", "counts", "drawn", "gained", "lengths", "accepted"],
)
def _walk_kernel(
    token, parent, counts, drawn, gained, lengths, accepted, size, width, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    request, count = tl.program_id(0).to(tl.int64), tl.num_programs(0) - 1
    start = request + _total(counts, request, BLOCK)
    if request == count:
        for base in range(start, size, BLOCK):
            row = base + tl.arange(0, BLOCK)
            tl.store(accepted + row, tl.zeros((BLOCK,), tl.uint8), mask=row < size)
    else:
        row = tl.arange(0, ROWS)
        live = row <= tl.load(counts + request)
        node = live & (row > 0)
        carried = tl.load(token + start + row, mask=live, other=0)
        above = tl.load(parent + start + row, mask=live, other=0) - start
        on_path = row == 0
        here, length = tl.zeros((), tl.int32), tl.full((), 1, tl.int64)
        draw = tl.load(drawn + start)
        tl.store(gained + request * width, draw)
        for depth in range(1, width):
            match = node & (above == here) & (carried == draw)  # one at most
            here = tl.max(tl.where(match, row, -1), 0)  # -1 is nobody's parent: the walk is over
            goes = here >= 0
            on_path = on_path | (row == here)
            draw = tl.where(goes, tl.load(drawn + start + tl.maximum(here, 0)), draw)
            length += goes.to(tl.int64)
            tl.store(gained + request * width + depth, tl.where(goes, draw, 0))
        tl.store(accepted + start + row, on_path.to(tl.uint8), mask=live)
        tl.store(lengths + request, length)


def walk(tree: DraftTree, drawn: Tensor, max_depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments and result as of trees.walk."""
    n, width, device = tree.count.shape[0], max_depth + 1, drawn.device
    gained = torch.empty(n, width, dtype=torch.int64, device=device)  # [n, D + 1]
    length = torch.empty(n, dtype=torch.int64, device=device)  # [n]
    accepted = torch.empty(tree.rows, dtype=torch.bool, device=device)  # [B]
    fields = tree.token, tree.parent, tree.count, drawn.contiguous()
    _walk_kernel[(n + 1,)](
        *fields, gained, length, accepted.view(torch.uint8), tree.rows, width, triton.next_power_of_2(MAX_NODES + 1), _BLOCK
    )
    return gained, length, accepted


@triton.jit(do_not_specialize=["columns"], do_not_specialize_on_alignment=_FIELDS)
def _edge_kernel(parent, path_prob, edge, columns, COLUMNS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * columns
    column = tl.arange(0, COLUMNS)
    live = column < columns
    prob = tl.load(path_prob + first + column, mask=live, other=0.0)
    above = tl.load(parent + first + column, mask=live, other=-1)
    before = tl.load(path_prob + first + above, mask=(prob > 0.0) & (above >= 0), other=1.0)  # of padding nothing is asked
    tl.store(edge + first + column, tl.where(prob > 0.0, prob / before, 0.0), mask=live)


def edge_prob(candidates: CandidateTree) -> Tensor:
    """Arguments and result as of tree.edge_prob; at most trees.MOST_COLUMNS columns."""
    n, columns = candidates.path_prob.shape
    edge = torch.empty_like(candidates.path_prob, memory_format=torch.contiguous_format)  # [n, N]
    if n and columns:
        block = max(_FEWEST, triton.next_power_of_2(columns))
        _edge_kernel[(n,)](candidates.parent.contiguous(), candidates.path_prob.contiguous(), edge, columns, block)
    return edge


@triton.jit(
    do_not_specialize=["width", "columns"],
    do_not_specialize_on_alignment=["numbers", "token", "parent", "depth", "path_prob", "source", "ints", "probs"],
)
def _pick_kernel(
    numbers, token, parent, depth, path_prob, source, ints, probs, width, columns, NONE: tl.constexpr, BLOCK: tl.constexpr
):
    request, count = tl.program_id(0), tl.num_programs(0)
    row, room = tl.load(numbers + request), tl.load(numbers + count + request)
    column = tl.arange(0, BLOCK)
    live = column < columns
    real = live & (row >= 0)
    at = tl.maximum(row, 0) * width + column
    out, field = request * columns + column, count * columns
    deep = tl.load(depth + at, mask=live, other=0)
    tl.store(ints + out, tl.load(token + at, mask=real, other=0), mask=live)
    tl.store(ints + field + out, tl.load(parent + at, mask=real, other=NONE), mask=live)
    tl.store(ints + 2 * field + out, deep, mask=live)
    tl.store(ints + 3 * field + out, tl.load(source + at, mask=real, other=0), mask=live)
    tl.store(probs + out, tl.load(path_prob + at, mask=real & (deep <= room), other=0.0), mask=live)


def picked(tree: CandidateTree, rows: Sequence[int], room: Sequence[int], columns: int) -> CandidateTree:
    """Arguments and result as of trees.picked."""
    count, device = len(rows), tree.token.device
    numbers = upload([*rows, *room], device)  # [2 * n], one copy for both
    ints = torch.empty(4, count, columns, dtype=torch.int64, device=device)  # [4, n, N]
    probs = torch.empty(count, columns, dtype=torch.float64, device=device)  # [n, N]
    fields: list[Tensor] = [x.contiguous() for x in (tree.token, tree.parent, tree.depth, tree.path_prob, tree.source)]
    if count and columns:
        block = max(_FEWEST, triton.next_power_of_2(columns))
        _pick_kernel[(count,)](numbers, *fields, ints, probs, tree.token.shape[1], columns, ROOT, block, num_warps=1)
    token, parent, depth, source = ints.unbind()
    return CandidateTree(token, parent, depth, probs, source)
