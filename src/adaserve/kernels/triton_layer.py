"""A narrow decoder's products in Triton, with norm, rotary, gate and residual: layer_products.py has their twins.

    program (row tile, column tile)    x [BM, K] in blocks . . . times W^T [K, BN in blocks . . .]

K is the whole width, so a program that norms its rows has seen all of them: it sums their squares beside the product, and divides
the product by the root. What comes in pairs, the halves of a head and gate and up, lies apart in W. A tile takes them
alternately, so that both of a pair are neighbours in one thread.

    columns of a tile    n0, n0 + apart, n0 + 1, n0 + 1 + apart, ...

They are launched plainly, unlike those of triton_rows.py: with each let in while the one before it ran, layers took a fifth to
two fifths longer at 16 to 192 rows by the same tiles, and as long at 3 (docs/log.md, 2026-11-28, third session).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
"""Rows of a program, the fewest that the matrix units take. At up to 64 rows no other tile tried made a layer 3% faster."""
GATE_COLUMNS, ADD_COLUMNS = 64, 32
"""Of W, a program: a gate's give half as many results. `normed_qkv` takes a head's."""
BLOCK, LONG_BLOCK = 64, 128
"""Depth of a block at most; the second one where K is longer than what comes out."""
STAGES = 5
"""Blocks that are asked for ahead, of 16-bit numbers; of wider ones half as many fit."""


def _pipeline(x: Tensor, block: int = BLOCK) -> dict[str, int]:
    """How a launch goes through x [M, K]: by blocks that divide K."""
    depth = x.shape[1]
    return {"BK": min(block, depth & -depth), "num_stages": STAGES * 2 // x.element_size(), "num_warps": 4}


@triton.jit
def _normed_pairs(
    x, norm, weight, bias, m, live, n, eps, DEPTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BIASED: tl.constexpr,
):  # fmt: skip
    """Columns n [BN] of the product with normed rows m [BM], every other one, and those between: [BM, BN / 2] float32 each."""
    k = tl.arange(0, BK)
    inputs = x + m[:, None] * DEPTH + k[None, :]
    weights = weight + n[None, :] * DEPTH + k[:, None]
    acc = tl.zeros((BM, BN), tl.float32)
    # Sums of squares are the diagonal of x x^T, by the matrix units: with 16 rows every warp holds all of x and would have to
    # square all of it, number by number, beside its share of the product.
    squares = tl.zeros((BM, BM), tl.float32)
    for base in range(0, DEPTH, BK):
        row = tl.load(inputs + base, mask=live[:, None], other=0.0)
        block = tl.load(weights + base)
        factor = tl.load(norm + base + k)
        squares = tl.dot(row, tl.trans(row), squares, input_precision="ieee")
        acc = tl.dot(row * factor[None, :], block, acc, input_precision="ieee")
    own = tl.arange(0, BM)
    square = tl.sum(tl.where(own[:, None] == own[None, :], squares, 0.0), axis=1)  # [BM]
    acc *= tl.rsqrt(square / DEPTH + eps)[:, None]
    if BIASED:
        acc += tl.load(bias + n).to(tl.float32)[None, :]
    return tl.split(tl.reshape(acc, (BM, BN // 2, 2)))


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["position", "dest"])
def _qkv_kernel(
    x, norm, weight, bias, cos, sin, position, dest, keys, values, q_norm, k_norm, q, rows, eps,
    DEPTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BM: tl.constexpr,
    BK: tl.constexpr, BIASED: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = HEAD_DIM // 2
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    live = m < rows
    head = tl.program_id(1)  # queries, then keys, then values
    lane = tl.arange(0, HEAD_DIM)
    n = head * HEAD_DIM + lane // 2 + lane % 2 * HALF
    rotates = head < HEADS + KV_HEADS
    pair = tl.arange(0, HALF)[None, :]
    turns = live[:, None] & rotates
    angle = tl.load(position + m, mask=live, other=0)[:, None] * HALF + pair
    c = tl.load(cos + angle, mask=turns, other=1.0).to(tl.float32)
    s = tl.load(sin + angle, mask=turns, other=0.0).to(tl.float32)
    place = tl.load(dest + m, mask=live, other=0) * KV_HEADS
    first, second = _normed_pairs(x, norm, weight, bias, m, live, n, eps, DEPTH, BM, HEAD_DIM, BK, BIASED)
    if NORMS:
        scale = tl.rsqrt((tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / HEAD_DIM + eps)[:, None]
        scale = tl.where(rotates, scale, 1.0)
        norms = tl.where(head < HEADS, q_norm, k_norm) + pair
        first *= scale * tl.load(norms, mask=rotates, other=1.0).to(tl.float32)
        second *= scale * tl.load(norms + HALF, mask=rotates, other=1.0).to(tl.float32)
    left = first * c - second * s
    right = second * c + first * s
    if head < HEADS:
        mine = q + (m * HEADS + head)[:, None] * HEAD_DIM + pair
        tl.store(mine, left.to(q.dtype.element_ty), mask=live[:, None])
        tl.store(mine + HALF, right.to(q.dtype.element_ty), mask=live[:, None])
    else:
        pool = tl.where(rotates, keys, values)
        mine = pool + (place + (head - HEADS) % KV_HEADS)[:, None] * HEAD_DIM + pair
        tl.store(mine, left.to(keys.dtype.element_ty), mask=live[:, None])
        tl.store(mine + HALF, right.to(keys.dtype.element_ty), mask=live[:, None])


def normed_qkv(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    position: Tensor,
    dest: Tensor,
    keys: Tensor,
    values: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> Tensor:
    """Arguments and result as of layer_products.normed_qkv."""
    rows, depth = x.shape
    _, kv_heads, head_dim = keys.shape
    heads = weight.shape[0] // head_dim - 2 * kv_heads
    q = x.new_empty(rows, heads, head_dim)  # [M, H, hd]
    if rows:
        _qkv_kernel[(triton.cdiv(rows, ROWS), heads + 2 * kv_heads)](
            x, norm, weight, norm if bias is None else bias, cos, sin, position, dest, keys, values,
            norm if q_norm is None else q_norm, norm if k_norm is None else k_norm, q, rows, eps,
            DEPTH=depth, HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, BM=ROWS,
            BIASED=bias is not None, NORMS=q_norm is not None, **_pipeline(x),
        )  # fmt: skip
    return q


@triton.jit(do_not_specialize=["rows"])
def _gate_kernel(
    x, norm, weight, bias, out, rows, eps, DEPTH: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    live = m < rows
    column = tl.program_id(1) * (BN // 2)
    lane = tl.arange(0, BN)
    n = column + lane // 2 + lane % 2 * WIDTH
    gate, up = _normed_pairs(x, norm, weight, bias, m, live, n, eps, DEPTH, BM, BN, BK, BIASED)
    gated = gate * tl.sigmoid(gate) * up
    mine = out + m[:, None] * WIDTH + column + tl.arange(0, BN // 2)[None, :]
    tl.store(mine, gated.to(out.dtype.element_ty), mask=live[:, None])


def normed_gate(x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Arguments and result as of layer_products.normed_gate."""
    (rows, depth), width = x.shape, weight.shape[0] // 2
    out = x.new_empty(rows, width)  # [M, I]
    if rows:
        _gate_kernel[(triton.cdiv(rows, ROWS), 2 * width // GATE_COLUMNS)](
            x, norm, weight, norm if bias is None else bias, out, rows, eps, DEPTH=depth, WIDTH=width, BM=ROWS,
            BN=GATE_COLUMNS, BIASED=bias is not None, **_pipeline(x),
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["rows"])
def _add_kernel(
    x, weight, bias, residual, total, rows, DEPTH: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    live = m < rows
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    inputs = x + m[:, None] * DEPTH + k[None, :]
    weights = weight + n[None, :] * DEPTH + k[:, None]
    at = m[:, None] * WIDTH + n[None, :]
    stream = tl.load(residual + at, mask=live[:, None], other=0.0).to(tl.float32)
    acc = tl.zeros((BM, BN), tl.float32)
    for base in range(0, DEPTH, BK):
        row = tl.load(inputs + base, mask=live[:, None], other=0.0)
        acc = tl.dot(row, tl.load(weights + base), acc, input_precision="ieee")
    if BIASED:
        acc += tl.load(bias + n).to(tl.float32)[None, :]
    summand = acc.to(total.dtype.element_ty).to(tl.float32)  # rounded where the twin rounds
    tl.store(total + at, (summand + stream).to(total.dtype.element_ty), mask=live[:, None])


def product_add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """Arguments and result as of layer_products.product_add."""
    (rows, depth), width = x.shape, weight.shape[0]
    total = torch.empty_like(residual)  # [M, N]
    if rows:
        _add_kernel[(triton.cdiv(rows, ROWS), width // ADD_COLUMNS)](
            x, weight, weight if bias is None else bias, residual, total, rows, DEPTH=depth, WIDTH=width, BM=ROWS,
            BN=ADD_COLUMNS, BIASED=bias is not None, **_pipeline(x, LONG_BLOCK if depth > width else BLOCK),
        )  # fmt: skip
    return total
