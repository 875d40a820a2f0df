"""Attention of packed rows over a paged prefix and a masked scratch tail (runtime/batch.py)."""

import functools
import os

import torch
from torch import Tensor

from adaserve.attention.tiling import tile
from adaserve.kernels import native
from adaserve.kernels.gpu import on_gpu
from adaserve.kernels.linear import CHOICE, Path, available_paths, choose
from adaserve.runtime.batch import TAIL_ROWS, ForwardBatch


@functools.cache
def _path(asked: Path | None, environment: str | None) -> Path | None:
    """DOT where bfloat16 weights are multiplied by that or by AMX, if the machine can; else FMA; None without native kernels."""
    chosen = choose(asked, quantised=False)
    return Path.DOT if chosen is Path.AMX and Path.DOT in available_paths() else chosen


def attention_path(pool: torch.dtype, asked: Path | None = None) -> Path | None:
    """How attention on the CPU computes over a pool of this dtype, DOT or FMA as in kernels/linear.py; None: its torch twin does.

    DOT: queries and softmax weights are rounded to bfloat16, as keys and values are already; sums are float32.
    FMA: all is float32.
    asked: as for `choose`; the environment may ask too.
    """
    if pool not in (torch.float32, torch.bfloat16):
        return None
    path = _path(asked, os.environ.get(CHOICE))
    return Path.FMA if path is not None and (path is not Path.DOT or pool == torch.float32) else path


def attention_kernel(pool: torch.dtype, asked: Path | None = None) -> str | None:
    """The native kernel for a pool of this dtype, or None; see `attention_path`."""
    path = attention_path(pool, asked)
    return None if path is None else f"{path.value}_{'float' if pool == torch.float32 else 'bf16'}"


def attend_reference(
    q: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, scale: float, *, rounded: bool = False
) -> Tensor:
    """The plain torch twin of `attend`; any device, works in q.dtype.

    rounded: scaled queries and softmax weights, before they are divided by their sum, are rounded to bfloat16, as by DOT.
    """
    rows, heads, head_dim = q.shape
    kv_heads = keys.shape[1]
    out = q.new_zeros(rows, heads * head_dim)  # [B, H * hd]
    start = batch.start.tolist()
    slots = batch.slot.tolist()
    bits = torch.arange(TAIL_ROWS, device=q.device)  # [TAIL_ROWS]
    scaled = _round(q * scale) if rounded else q * scale
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
        grouped = scaled[first:last].view(last - first, kv_heads, heads // kv_heads, head_dim)  # [m, KH, H / KH, hd]
        score = torch.einsum("mkgd,nkd->kgmn", grouped, k).masked_fill(~seen, -torch.inf)
        weight = torch.where(seen, (score - score.amax(-1, keepdim=True)).exp(), 0.0)  # a row that sees nothing: zeros
        weight = _round(weight) if rounded else weight
        weight = torch.where(seen, weight / weight.sum(-1, keepdim=True), 0.0)
        out[first:last] = torch.einsum("kgmn,nkd->mkgd", weight, v).reshape(last - first, heads * head_dim)
    return out


def _round(x: Tensor) -> Tensor:
    """To bfloat16 and back."""
    return x.bfloat16().to(x.dtype)


def attend(q: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, scale: float, *, path: Path | None = None) -> Tensor:
    """Softmax attention of every row over the keys it may see: q [B, H, hd] -> [B, H * hd].

    keys, values [R, KH, hd] are one layer's pool; a row sees the pool rows that `ForwardBatch` says; query head h reads
    key-value head h // (H / KH); scores are multiplied by `scale`. A row that sees nothing gets zeros.
    path: on a CPU, see `attention_path`. There no bit of a row's result depends on the other rows of the batch.
    """
    if on_gpu(q):
        from adaserve.attention import triton_paged

        tiles = batch.tiles or tile(batch, group=q.shape[1] // keys.shape[1], kv_heads=keys.shape[1], longest=None)
        return triton_paged.attend(q, keys, values, batch, tiles, scale)
    symbol = attention_kernel(keys.dtype, path) if native.fits(q) else None
    if symbol is None or not (keys.is_contiguous() and values.is_contiguous()):
        return attend_reference(q, keys, values, batch, scale)
    run = native.function("attention", symbol, "piiippipppppiiidp")
    assert run is not None, "there is a path"
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
        from adaserve.attention import triton_paged, triton_tiling

        q = keys.new_zeros(1, keys.shape[1] * group, keys.shape[2])  # [1, H, hd]
        triton_paged.compile_all(q, keys, values, batch)
        triton_tiling.compile_all(batch)
