"""Products of few rows with large weights in Triton, for linear.Linear on a GPU: they read weights faster than the library does.

Such a product lasts as long as its weights take to read, so all that counts is how many of their bytes are under way. It computes
out^T = W x^T, for which the weights are the tall operand of the matrix units, and the few rows the narrow one:

    program (n tile, part)    W [64, share of K] in blocks . . . times x^T [share of K, all rows]

Where there are too few tiles for all processors, K is divided among `parts`, whose float32 sums a second kernel adds in order.

EARLY: as in triton_rows.py; the first block of weights, which no kernel writes, is asked for while the one before still runs.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adaserve.kernels.gpu import starts_early

_OUTPUTS = 64
"""Of a tile."""
_PROGRAMS = 200
"""At least so many, or 100 undivided ones: enough to keep the memory of a large GPU busy."""
_SUM_BLOCK = 2048


@dataclass(frozen=True)
class Tile:
    """How a product is divided: rows at most, depth of a block, stages ahead."""

    rows: int
    depth: int
    stages: int


# Found by benchmarks/gpu_products.py among 38 to 52 divisions for each number of rows.
FEW, MORE = Tile(16, 256, 4), Tile(64, 128, 6)
FEW_WEIGHTS = 32 << 20
"""Fewest weights for which few rows pay: below, the library is as fast."""
MORE_OUTPUTS = 1 << 14
"""Fewest outputs for which up to MORE.rows rows pay."""


def tile_for(rows: int, outputs: int, depth: int) -> Tile | None:
    """How to divide a product, or None where the library is faster or sizes do not fit."""
    if rows <= FEW.rows:
        tile = FEW if outputs * depth >= FEW_WEIGHTS else None
    else:
        tile = MORE if rows <= MORE.rows and outputs >= MORE_OUTPUTS and outputs * depth >= FEW_WEIGHTS else None
    return tile if rows and tile is not None and outputs % _OUTPUTS == 0 and depth % tile.depth == 0 else None


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


def product(x: Tensor, weight: Tensor, tile: Tile) -> Tensor:
    """x [M, K] times weight [N, K] -> [M, N] in x.dtype; M at most tile.rows, the rest as `tile_for` and `parts_for` say."""
    x = x.contiguous()
    (rows, depth), outputs = x.shape, weight.shape[0]
    out = x.new_empty(rows, outputs)  # [M, N]
    blocks = depth // tile.depth
    share = -(-blocks // parts_for(outputs)) * tile.depth
    parts = -(-depth // share)  # none is empty
    sums = out if parts == 1 else torch.empty(parts, rows, outputs, device=x.device)  # [parts, M, N]
    early = starts_early(x)
    _product_kernel[(outputs // _OUTPUTS, parts)](
        weight, x, sums, rows, outputs, depth, share, _OUTPUTS, tile.rows, tile.depth, early,
        num_warps=4, num_stages=tile.stages, launch_pdl=early,
    )  # fmt: skip
    if parts > 1:
        size = rows * outputs
        _sum_kernel[(triton.cdiv(size, _SUM_BLOCK),)](sums, out, size, parts, _SUM_BLOCK, early, launch_pdl=early)
    return out
