"""Triton kernels over rows: norms, rotary embedding with the store to the pool, the gate, moves between pool rows.

Each does what the torch twin of the same name does (norm.py, rotary.py, gate.py, move.py); the twins are the specification. All
arithmetic is float32, whatever the tensors hold. Imported only where there is a GPU, or Triton's interpreter in the tests.

EARLY: the kernel may start while the one before it runs. Until gdc_wait it reads only what that one does not write, and writes
nothing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adaserve.kernels.gpu import starts_early

_GATE_BLOCK = 1024
_HEADS_AT_ONCE = 8


@triton.jit
def _norm_kernel(
    x, residual, weight, out, total, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, BLOCK)
    live = column < WIDTH
    factor = tl.load(weight + column, mask=live, other=0.0).to(tl.float32)
    if EARLY:
        gdc_wait()
    row = tl.load(x + at + column, mask=live, other=0.0).to(tl.float32)
    if ADDS:
        row += tl.load(residual + at + column, mask=live, other=0.0).to(tl.float32)
        row = row.to(total.dtype.element_ty)  # the sum is rounded before it is normalised, as the twin does
        tl.store(total + at + column, row, mask=live)
        row = row.to(tl.float32)
    scale = tl.rsqrt(tl.sum(row * row, axis=0) / WIDTH + eps)
    scaled = row * scale * factor
    tl.store(out + at + column, scaled.to(out.dtype.element_ty), mask=live)


def _warps(block: int) -> int:
    return 4 if block <= 2048 else 8


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [M, H], weight [H] -> [M, H]."""
    x = x.contiguous()
    out = torch.empty_like(x)  # [M, H]
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    early = starts_early(x)
    if rows:
        _norm_kernel[(rows,)](x, x, weight, out, out, eps, width, block, False, early, num_warps=_warps(block), launch_pdl=early)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x, residual [M, H] -> (normed, x + residual)."""
    x, residual = x.contiguous(), residual.contiguous()
    out, total = torch.empty_like(x), torch.empty_like(x)  # [M, H]
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    early = starts_early(x)
    if rows:
        _norm_kernel[(rows,)](
            x, residual, weight, out, total, eps, width, block, True, early, num_warps=_warps(block), launch_pdl=early
        )
    return out, total


@triton.jit(do_not_specialize_on_alignment=["token"])
def _embed_kernel(token, embedding, stride, weight, out, rows, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, BLOCK)
    live = column < WIDTH
    factor = tl.load(weight + column, mask=live, other=0.0).to(tl.float32)
    row = tl.load(embedding + tl.load(token + tl.program_id(0)) * stride + column, mask=live, other=0.0)
    row = row.to(rows.dtype.element_ty)
    tl.store(rows + at + column, row, mask=live)
    row = row.to(tl.float32)
    scale = tl.rsqrt(tl.sum(row * row, axis=0) / WIDTH + eps)
    tl.store(out + at + column, (row * scale * factor).to(out.dtype.element_ty), mask=live)


def embed_rms_norm(token: Tensor, embedding: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Arguments and result as of norm.embed_rms_norm; launched plainly, for it has nothing to read beforehand."""
    width = embedding.shape[1]
    out, rows = (torch.empty(len(token), width, dtype=dtype, device=token.device) for _ in range(2))  # [M, H] each
    block = triton.next_power_of_2(width)
    if len(token):
        _embed_kernel[(len(token),)](
            token, embedding, embedding.stride(0), weight, out, rows, eps, width, block, num_warps=_warps(block)
        )
    return out, rows


@triton.jit
def _gate_kernel(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = column < WIDTH
    if EARLY:
        gdc_wait()
    gate = tl.load(gate_up + row * 2 * WIDTH + column, mask=live, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + column, mask=live, other=0.0).to(tl.float32)
    gated = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty).to(tl.float32)  # rounded where the twin rounds
    tl.store(out + row * WIDTH + column, (gated * up).to(out.dtype.element_ty), mask=live)


def silu_mul(gate_up: Tensor) -> Tensor:
    """[M, 2I] -> [M, I]."""
    gate_up = gate_up.contiguous()
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)  # [M, I]
    early = starts_early(gate_up)
    if rows:
        _gate_kernel[(rows, triton.cdiv(width, _GATE_BLOCK))](gate_up, out, width, _GATE_BLOCK, early, launch_pdl=early)
    return out


@triton.jit(do_not_specialize_on_alignment=["position", "dest"])
def _rotate_kernel(
    qkv, cos, sin, position, dest, keys, values, q_norm, k_norm, q, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr,
    NORMS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)[:, None]  # queries, then keys, then values
    pair = tl.arange(0, BLOCK)[None, :]
    HALF: tl.constexpr = HEAD_DIM // 2
    ALL: tl.constexpr = HEADS + 2 * KV_HEADS
    live = (head < ALL) & (pair < HALF)
    angle = tl.load(position + row) * HALF + pair
    c = tl.load(cos + angle, mask=pair < HALF, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=pair < HALF, other=0.0).to(tl.float32)
    place = tl.load(dest + row) * KV_HEADS
    if EARLY:
        gdc_wait()
    at = qkv + (row * ALL + head) * HEAD_DIM + pair
    first = tl.load(at, mask=live, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=live, other=0.0).to(tl.float32)
    is_query = head < HEADS
    is_value = head >= HEADS + KV_HEADS
    if NORMS:
        scale = tl.rsqrt((tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / HEAD_DIM + eps)[:, None]
        wanted = live & ~is_value
        weight = tl.where(is_query, tl.load(q_norm + pair + head * 0, mask=wanted, other=1.0).to(tl.float32),
                          tl.load(k_norm + pair + head * 0, mask=wanted, other=1.0).to(tl.float32))  # fmt: skip
        other = tl.where(is_query, tl.load(q_norm + HALF + pair + head * 0, mask=wanted, other=1.0).to(tl.float32),
                         tl.load(k_norm + HALF + pair + head * 0, mask=wanted, other=1.0).to(tl.float32))  # fmt: skip
        first = tl.where(is_value, first, (first * scale * weight).to(qkv.dtype.element_ty).to(tl.float32))
        second = tl.where(is_value, second, (second * scale * other).to(qkv.dtype.element_ty).to(tl.float32))
    left = tl.where(is_value, first, first * c - second * s)
    right = tl.where(is_value, second, second * c + first * s)

    mine = q + (row * HEADS + head) * HEAD_DIM + pair
    tl.store(mine, left.to(q.dtype.element_ty), mask=live & is_query)
    tl.store(mine + HALF, right.to(q.dtype.element_ty), mask=live & is_query)
    key = keys + (place + head - HEADS) * HEAD_DIM + pair
    is_key = ~is_query & ~is_value
    tl.store(key, left.to(keys.dtype.element_ty), mask=live & is_key)
    tl.store(key + HALF, right.to(keys.dtype.element_ty), mask=live & is_key)
    value = values + (place + head - HEADS - KV_HEADS) * HEAD_DIM + pair
    tl.store(value, left.to(values.dtype.element_ty), mask=live & is_value)
    tl.store(value + HALF, right.to(values.dtype.element_ty), mask=live & is_value)


def rotate_and_store(
    qkv: Tensor,
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
    """Rotate, store keys and values at pool rows `dest`, return q [M, H, hd]; arguments as of rotary.rotate_and_store."""
    qkv = qkv.contiguous()
    _, kv_heads, head_dim = keys.shape
    rows = qkv.shape[0]
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    q = qkv.new_empty(rows, heads, head_dim)  # [M, H, hd]
    early = starts_early(qkv)
    if rows:
        grid = (rows, triton.cdiv(heads + 2 * kv_heads, _HEADS_AT_ONCE))
        _rotate_kernel[grid](
            qkv, cos, sin, position, dest, keys, values,
            qkv if q_norm is None else q_norm, qkv if k_norm is None else k_norm, q, eps,
            heads, kv_heads, head_dim, triton.next_power_of_2(head_dim // 2), _HEADS_AT_ONCE, q_norm is not None,
            early, launch_pdl=early,
        )  # fmt: skip
    return q


@triton.jit(do_not_specialize=["layer_stride"], do_not_specialize_on_alignment=["source", "dest"])
def _move_kernel(pool, source, dest, layer_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    a = tl.load(source + tl.program_id(0))
    b = tl.load(dest + tl.program_id(0))
    if a != b:
        layer = pool + tl.program_id(1).to(tl.int64) * layer_stride
        column = tl.arange(0, BLOCK)
        live = column < WIDTH
        tl.store(layer + b * WIDTH + column, tl.load(layer + a * WIDTH + column, mask=live), mask=live)


def move_rows(pool: Tensor, source: Tensor, dest: Tensor) -> None:
    """In every layer of pool [layers, R, KH, hd] copy rows source [m] to dest [m]; no row is both, but a row to itself."""
    layers, _, heads, head_dim = pool.shape
    width = heads * head_dim
    if source.shape[0]:
        block = triton.next_power_of_2(width)
        _move_kernel[(source.shape[0], layers)](pool, source, dest, pool.stride(0), width, block)
