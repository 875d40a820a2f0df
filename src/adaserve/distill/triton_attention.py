"""Attention of one token a row as a Triton kernel; its twin is torch's scaled_dot_product_attention.

Library kernels are made for many queries a row: with the few of one KV group they compute on tiles that are nearly empty.
Imported only where there is a GPU, or Triton's interpreter in the tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 64


@triton.jit
def _attend_kernel(
    query, keys, values, out, length, row, scale, GROUP: tl.constexpr, QUERIES: tl.constexpr, WIDTH: tl.constexpr,
    DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)  # a row and a KV head
    of, dim, at = tl.arange(0, QUERIES), tl.arange(0, DIM), tl.arange(0, BLOCK)
    inside = dim < WIDTH
    place = (pair * GROUP + of[:, None]) * WIDTH + dim[None, :]
    live = (of[:, None] < GROUP) & inside[None, :]
    q = tl.load(query + place, mask=live, other=0.0)  # [QUERIES, DIM]
    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    gathered = tl.zeros((QUERIES, DIM), tl.float32)
    for start in range(0, length, BLOCK):
        there = start + at < length
        where = pair * row + (start + at)[:, None] * WIDTH + dim[None, :]
        k = tl.load(keys + where, mask=there[:, None] & inside[None, :], other=0.0)  # [BLOCK, DIM]
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # [QUERIES, BLOCK]
        score = tl.where(there[None, :], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, axis=1))
        share = tl.exp(score - higher[:, None])
        fade = tl.exp(highest - higher)
        total = total * fade + tl.sum(share, axis=1)
        v = tl.load(values + where, mask=there[:, None] & inside[None, :], other=0.0)  # [BLOCK, DIM]
        gathered = gathered * fade[:, None] + tl.dot(share.to(v.dtype), v, input_precision="ieee")
        highest = higher
    tl.store(out + place, (gathered / total[:, None]).to(out.dtype.element_ty), mask=live)


def attend(query: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    """Attend from the only query of every head to the first `length` keys.

    query [n, H, hd], keys and values [n, KH, T, hd], all contiguous -> [n, H, hd]. Head h reads KV head h // (H / KH).
    """
    rows, heads, width = query.shape
    kv_heads, longest = keys.shape[1:3]
    group = heads // kv_heads
    out = torch.empty_like(query)  # [n, H, hd]
    _attend_kernel[(rows * kv_heads,)](
        query, keys, values, out, length, longest * width, width**-0.5, group, max(16, triton.next_power_of_2(group)), width,
        max(16, triton.next_power_of_2(width)), _BLOCK, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out
