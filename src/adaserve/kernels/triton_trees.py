"""Picking trees out of a batch as one Triton kernel; the twin is trees.picked_reference, the specification."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaserve.runtime.transfer import upload
from adaserve.tree import ROOT, CandidateTree


@triton.jit(do_not_specialize=["width", "columns"])
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
        block = triton.next_power_of_2(columns)
        _pick_kernel[(count,)](numbers, *fields, ints, probs, tree.token.shape[1], columns, ROOT, block, num_warps=1)
    token, parent, depth, source = ints.unbind()
    return CandidateTree(token, parent, depth, probs, source)
