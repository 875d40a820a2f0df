"""Products of few rows with large weights in Triton, for linear.Linear on a GPU: they read weights faster than the library does.

Such a product lasts as long as its weights take to read, so all that counts is how many of their bytes are under way. It computes
out^T = W x^T, for which the weights are the tall operand of the matrix units, and the few rows the narrow one:

    program (n tile, part)    W [64, share of K] in blocks . . . times x^T [share of K, all rows]

Where there are too few tiles for all processors, K is divided among parts, whose float32 sums a second kernel adds in order.

EARLY: as in triton_rows.py; the first block of weights, which no kernel writes, is asked for while the one before still runs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adaserve.kernels.gpu import starts_early

_OUTPUTS, _DEPTH, _WARPS = 64, 128, 4
"""Of a tile. These, the stages and the limits below were found by benchmarks/gpu_products.py, for 1 to 128 rows (docs/log.md)."""
_STAGES, _DIVIDED_STAGES = 6, 3
"""Blocks of 16-bit numbers that a program asks for ahead; where K is divided, several programs share a processor."""
_PROGRAMS = 200
"""At least so many, or half of it undivided: enough to keep the memory of a large GPU busy."""
_SUM_BLOCK = 2048

MOST_ROWS = 32
"""For which it pays: at 64 it gains 2% on an H100 and loses as much on an H200."""
LARGE = 32 << 20
"""Fewest weights for which it pays: below, the library is as fast."""


def pays(rows: int, outputs: int, depth: int) -> bool:
    """Whether such a product fits, and is faster than the library's."""
    fits = outputs % _OUTPUTS == 0 and depth % _DEPTH == 0
    return fits and 0 < rows <= MOST_ROWS and outputs * depth >= LARGE


def parts_for(outputs: int) -> int:
    """Among how many programs K is divided."""
    tiles = outputs // _OUTPUTS
    return 1 if 2 * tiles >= _PROGRAMS else -(-_PROGRAMS // tiles)


@triton.jit(do_not_specialize=["rows"])
def _product_kernel(
    w, x, out, rows, outputs, depth, share, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    if EARLY:
        gdc_launch_dependents()
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    part = tl.program_id(1)
    m = tl.arange(0, BM)
    k = part * share + tl.arange(0, BK)
    stop = tl.minimum(share, depth - part * share)
    weights = w + n.to(tl.int64)[:, None] * depth + k[None, :]
    inputs = x + m[None, :] * depth + k[:, None]
    live = m[None, :] < rows
    block = tl.load(weights)
    if EARLY:
        gdc_wait()
    acc = tl.dot(block, tl.load(inputs, mask=live, other=0.0), input_precision="ieee")
    for base in range(BK, stop, BK):
        block = tl.load(weights + base)
        acc = tl.dot(block, tl.load(inputs + base, mask=live, other=0.0), acc, input_precision="ieee")
    tl.store(out + (part * rows + m[None, :]) * outputs + n[:, None], acc.to(out.dtype.element_ty), mask=live)


@triton.jit
def _sum_kernel(parts, out, size, PARTS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = at < size
    total = tl.load(parts + at, mask=live, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + part * size + at, mask=live, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=live)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, K] times weight [N, K] -> [M, N] in x.dtype. M is at most MOST_ROWS; N and K are multiples of a tile's."""
    x = x.contiguous()
    (rows, depth), outputs = x.shape, weight.shape[0]
    out = x.new_empty(rows, outputs)  # [M, N]
    share = -(-(depth // _DEPTH) // parts_for(outputs)) * _DEPTH
    parts = -(-depth // share)  # none is empty
    sums = out if parts == 1 else torch.empty(parts, rows, outputs, dtype=torch.float32, device=x.device)
    early = starts_early(x)
    stages = (_STAGES if parts == 1 else _DIVIDED_STAGES) * 2 // x.element_size()  # wider numbers need the room
    _product_kernel[(outputs // _OUTPUTS, parts)](
        weight, x, sums, rows, outputs, depth, share, _OUTPUTS, max(16, triton.next_power_of_2(rows)), _DEPTH, early,
        num_warps=_WARPS, num_stages=stages, launch_pdl=early,
    )  # fmt: skip
    if parts > 1:
        size = rows * outputs
        _sum_kernel[(triton.cdiv(size, _SUM_BLOCK),)](sums, out, size, parts, _SUM_BLOCK, early, launch_pdl=early)
    return out
