"""Rotary embedding: split the fused projection, rotate queries and keys, write keys and values to the pool, in one go."""

from dataclasses import dataclass

import torch
from torch import Tensor

from adaserve.kernels import native
from adaserve.kernels.gpu import on_gpu
from adaserve.kernels.norm import rms_norm_reference

ROTATIONS = {torch.float32: "rotate_float", torch.bfloat16: "rotate_bf16"}
"""The native kernels, by the pool's dtype."""


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines of every position, scaling included.

    cos, sin  [L, hd / 2]: one row a position, in the activations' dtype, but at least float32
    """

    cos: Tensor
    sin: Tensor


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (j, j + hd/2), the Hugging Face convention: x [M, heads, hd], cos and sin [M, 1, hd / 2]."""
    first, second = x.chunk(2, dim=-1)  # [M, heads, hd / 2] each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotate_and_store_reference(
    qkv: Tensor,
    table: RotaryTable,
    position: Tensor,
    dest: Tensor,
    keys: Tensor,
    values: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> Tensor:
    """The plain torch twin of `rotate_and_store`."""
    _, kv_heads, head_dim = keys.shape
    rows = qkv.shape[0]
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    q, k, v = qkv.view(rows, heads + 2 * kv_heads, head_dim).split((heads, kv_heads, kv_heads), dim=1)  # [M, heads, hd]
    if q_norm is not None:
        q = rms_norm_reference(q, q_norm, eps)
    if k_norm is not None:
        k = rms_norm_reference(k, k_norm, eps)
    cos = table.cos[position].to(qkv.dtype).unsqueeze(1)  # [M, 1, hd / 2]
    sin = table.sin[position].to(qkv.dtype).unsqueeze(1)
    keys[dest] = _rotate(k, cos, sin).to(keys.dtype)
    values[dest] = v.to(values.dtype)
    return _rotate(q, cos, sin)


def rotate_and_store(
    qkv: Tensor,
    table: RotaryTable,
    position: Tensor,
    dest: Tensor,
    keys: Tensor,
    values: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> Tensor:
    """Rotate queries and keys by position, write keys and values to their pool rows, give the queries back.

    qkv [M, (H + 2 KH) * hd] holds queries, keys and values side by side; position, dest [M]; keys, values [R, KH, hd] are
    one layer's pool, written in its dtype; q_norm, k_norm [hd] are the weights of per-head norms, before rotation.
    Returns q [M, H, hd].
    """
    cos, sin = table.cos, table.sin
    if on_gpu(qkv):
        from adaserve.kernels import triton_rows

        return triton_rows.rotate_and_store(qkv, cos, sin, position, dest, keys, values, q_norm, k_norm, eps)
    symbol = ROTATIONS.get(keys.dtype)
    norms = [norm for norm in (q_norm, k_norm) if norm is not None]
    run = native.function("rows", symbol, "piiiippppppppdp") if symbol and native.fits(qkv, cos, sin, *norms) else None
    if run is None or not (keys.is_contiguous() and values.is_contiguous() and position.is_contiguous() and dest.is_contiguous()):
        return rotate_and_store_reference(qkv, table, position, dest, keys, values, q_norm, k_norm, eps)
    rows, width = qkv.shape
    _, kv_heads, head_dim = keys.shape
    heads = width // head_dim - 2 * kv_heads
    q = torch.empty(rows, heads, head_dim)  # [M, H, hd]
    run(
        qkv.data_ptr(),
        rows,
        heads,
        kv_heads,
        head_dim,
        cos.data_ptr(),
        sin.data_ptr(),
        position.data_ptr(),
        dest.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        0 if q_norm is None else q_norm.data_ptr(),
        0 if k_norm is None else k_norm.data_ptr(),
        eps,
        q.data_ptr(),
    )
    return q
