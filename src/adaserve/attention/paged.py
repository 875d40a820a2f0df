"""Attention of packed rows over a paged prefix and a masked scratch tail (runtime/batch.py)."""

import torch
from torch import Tensor

from adaserve.attention.tiling import tile
from adaserve.kernels import native
from adaserve.kernels.gpu import on_gpu
from adaserve.runtime.batch import TAIL_ROWS, ForwardBatch

_SYMBOL = {torch.float32: "attend_float", torch.bfloat16: "attend_bf16"}  # by the pool's dtype


def attend_reference(q: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, scale: float) -> Tensor:
    """The plain torch twin of `attend`; any device, works in q.dtype."""
    rows, heads, head_dim = q.shape
    kv_heads = keys.shape[1]
    out = q.new_zeros(rows, heads * head_dim)  # [B, H * hd]
    start = batch.start.tolist()
    slots = batch.slot.tolist()
    bits = torch.arange(TAIL_ROWS, device=q.device)  # [TAIL_ROWS]
    for group, slot in enumerate(slots):
        first, last = start[group], start[group + 1]
        if first == last:
            continue
        prefix = batch.prefix[first:last]  # [m]
        length = int(prefix.max())
        pages = batch.pages[slot, : -(-length // batch.page_size)]  # [p]
        paged = pages.unsqueeze(1) * batch.page_size + torch.arange(batch.page_size, device=q.device)  # [p, page_size]
        tail = batch.tail_start + slot * TAIL_ROWS + bits  # [TAIL_ROWS]
        pool_row = torch.cat((paged.flatten()[:length], tail))  # [n]
        seen_prefix = torch.arange(length, device=q.device) < prefix.unsqueeze(1)  # [m, length]
        seen_tail = (batch.mask[first:last].unsqueeze(1) >> bits) & 1 != 0  # [m, TAIL_ROWS]
        seen = torch.cat((seen_prefix, seen_tail), dim=1)  # [m, n]
        k, v = keys[pool_row].to(q.dtype), values[pool_row].to(q.dtype)  # [n, KH, hd]
        # Pool rows that a query does not see may hold anything, NaN included, and 0 * NaN is NaN: a sick draft node must not
        # spoil its siblings. Those who see it get NaN by its key.
        k = torch.where(v.isfinite().flatten(1).all(1)[:, None, None], k, torch.nan)
        v = v.nan_to_num(0.0, 0.0, 0.0)
        grouped = q[first:last].view(last - first, kv_heads, heads // kv_heads, head_dim)  # [m, KH, H / KH, hd]
        score = torch.einsum("mkgd,nkd->kgmn", grouped, k) * scale
        score = score.masked_fill(~seen, -torch.inf)
        weight = torch.where(seen, score.softmax(-1), 0.0)  # a row that sees nothing: zeros
        out[first:last] = torch.einsum("kgmn,nkd->mkgd", weight, v).reshape(last - first, heads * head_dim)
    return out


def attend(q: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, scale: float) -> Tensor:
    """Softmax attention of every row over the keys it may see: q [B, H, hd] -> [B, H * hd].

    keys, values [R, KH, hd] are one layer's pool; a row sees the pool rows that `ForwardBatch` says; query head h reads
    key-value head h // (H / KH); scores are multiplied by `scale`. A row that sees nothing gets zeros.
    """
    if on_gpu(q):
        from adaserve.attention import triton_paged

        tiles = batch.tiles or tile(batch, group=q.shape[1] // keys.shape[1], kv_heads=keys.shape[1], longest=None)
        return triton_paged.attend(q, keys, values, batch, tiles, scale)
    symbol = _SYMBOL.get(keys.dtype)
    run = native.function("attention", symbol, "piiippipppppiiidp") if symbol and native.fits(q) else None
    if run is None or not (keys.is_contiguous() and values.is_contiguous()):
        return attend_reference(q, keys, values, batch, scale)
    rows, heads, head_dim = q.shape
    out = torch.empty(rows, heads * head_dim)  # [B, H * hd]
    run(
        q.data_ptr(),
        heads,
        keys.shape[1],
        head_dim,
        keys.data_ptr(),
        values.data_ptr(),
        batch.slot.shape[0],
        batch.start.data_ptr(),
        batch.slot.data_ptr(),
        batch.prefix.data_ptr(),
        batch.mask.data_ptr(),
        batch.pages.data_ptr(),
        batch.pages.shape[1],
        batch.page_size,
        batch.tail_start,
        scale,
        out.data_ptr(),
    )
    return out


def prepare(keys: Tensor, values: Tensor, batch: ForwardBatch, group: int) -> None:
    """On a GPU, compile all that `attend` may need with these, so that no request waits for it; elsewhere there is nothing to do.

    keys, values [R, KH, hd]: one layer's pool, which is not touched; batch: any of one row; group: query heads a key-value head.
    """
    if on_gpu(keys):
        from adaserve.attention import triton_paged

        q = keys.new_zeros(1, keys.shape[1] * group, keys.shape[2])  # [1, H, hd]
        triton_paged.compile_all(q, keys, values, batch)
