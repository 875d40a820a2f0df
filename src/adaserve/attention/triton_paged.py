"""Attention over paged prefix and masked tail in Triton: paged.attend on a GPU; paged.attend_reference is the specification.

A tile is some rows of one group times the query heads of one key-value head, so keys and values are read once for all of them:

    program (tile, kv head, split)    q [rows * H / KH, hd]    prefix blocks of its share . . . | tail (the last split alone)

The context is divided among splits, which leave partial sums that a second kernel merges by their log-sum-exp; with one split
the result is written at once. Lengths and page tables are read on the device: nothing here depends on the batch but its sizes.

EARLY: the kernel starts while the one before it runs, and reads what says which rows it is about; triton_rows.py has the rule.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adaserve.attention.tiling import FEWEST_LANES, LANES, SPLITS
from adaserve.kernels.gpu import starts_early
from adaserve.runtime.batch import TAIL_ROWS, ForwardBatch, Tiles


@triton.jit
def _fold(score, v, best, mass, acc):
    """Take one more block of scores [M, N] and values [N, D] into the running softmax (base 2); who needs it sums mass [M, N]."""
    fresh = tl.maximum(best, tl.max(score, axis=1))
    safe = tl.where(fresh == float("-inf"), 0.0, fresh)  # nothing seen yet
    weight = tl.exp2(score - safe[:, None])
    decay = tl.exp2(best - safe)
    mass = mass * decay[:, None] + weight
    acc = acc * decay[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
    return fresh, mass, acc


# Compiled anew for none of these: a compilation in the middle of serving takes a second.
_INDICES = ["tile_slot", "tile_first", "tile_rows", "tile_reach", "tile_nodes", "prefix", "mask", "pages"]


@triton.jit(do_not_specialize=["pages_stride", "tail_start", "splits"], do_not_specialize_on_alignment=_INDICES)
def _attend_kernel(
    q, keys, values, out, partial, log_mass, tile_slot, tile_first, tile_rows, tile_reach, tile_nodes, prefix, mask, pages,
    pages_stride, tail_start, scale, splits,
    PAGE: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, TAIL: tl.constexpr,
    WHOLE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_launch_dependents()
    tile = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    rows = tl.load(tile_rows + tile)
    slot = tl.load(tile_slot + tile)
    first = tl.load(tile_first + tile)
    longest = tl.load(tile_reach + tile).to(tl.int32)
    nodes = tl.load(tile_nodes + tile)
    lane = tl.arange(0, M)
    live = lane < rows * GROUP
    row = first + lane // GROUP
    seen = tl.load(prefix + row, mask=live, other=0).to(tl.int32)
    bits = tl.load(mask + row, mask=live, other=0)
    if EARLY:
        gdc_wait()
    if rows > 0:
        d = tl.arange(0, D)
        wide = d < HEAD_DIM
        at = (row * KV_HEADS + head) * GROUP + lane % GROUP  # which (row, query head)
        query = tl.load(q + at[:, None] * HEAD_DIM + d[None, :], mask=live[:, None] & wide[None, :], other=0.0)
        query = query.to(keys.dtype.element_ty)
        best = tl.full((M,), float("-inf"), tl.float32)
        mass = tl.zeros((M, N), tl.float32)
        acc = tl.zeros((M, D), tl.float32)

        share = tl.cdiv(tl.cdiv(longest, N), splits) * N
        stop = tl.minimum(share * (split + 1), longest)
        for base in range(share * split, stop, N):
            position = base + tl.arange(0, N)
            there = position < stop
            page = tl.load(pages + slot * pages_stride + position // PAGE, mask=there, other=0)
            place = ((page * PAGE + position % PAGE) * KV_HEADS + head) * HEAD_DIM
            k = tl.load(keys + place[None, :] + d[:, None], mask=there[None, :] & wide[:, None], other=0.0)
            v = tl.load(values + place[:, None] + d[None, :], mask=there[:, None] & wide[None, :], other=0.0)
            score = tl.dot(query, k, input_precision="ieee") * scale  # base 2
            score = tl.where(there[None, :] & (position[None, :] < seen[:, None]), score, float("-inf"))
            best, mass, acc = _fold(score, v, best, mass, acc)
        total = tl.sum(mass, axis=1)

        if (split == splits - 1) & (nodes != 0):
            # Asked for only now: held through the loop these rows would cost half of the tiles that fit on a processor.
            node = tl.arange(0, TAIL)
            used = ((nodes >> node) & 1) != 0  # what no row of the tile names is not read
            place = ((tail_start + slot * TAIL + node) * KV_HEADS + head) * HEAD_DIM
            tail_k = tl.load(keys + place[None, :] + d[:, None], mask=used[None, :] & wide[:, None], other=0.0)
            tail_v = tl.load(values + place[:, None] + d[None, :], mask=used[:, None] & wide[None, :], other=0.0)
            names = ((bits[:, None] >> node[None, :]) & 1) != 0
            # 0 * NaN is NaN: a sick node must not spoil its siblings, but those who see it.
            sound = (tail_v.to(tl.float32) - tail_v.to(tl.float32)) == 0.0
            sick = tl.min(sound.to(tl.int32), axis=1) == 0
            tail_v = tl.where(sound, tail_v, 0.0)
            score = tl.dot(query, tail_k, input_precision="ieee") * scale  # base 2
            score = tl.where(sick[None, :], float("nan"), score)
            score = tl.where(names, score, float("-inf"))
            best, spread, acc = _fold(score, tail_v, best, tl.zeros((M, TAIL), tl.float32) + (total / TAIL)[:, None], acc)
            total = tl.sum(spread, axis=1)

        result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        store = live[:, None] & wide[None, :]
        if WHOLE:
            tl.store(out + at[:, None] * HEAD_DIM + d[None, :], result.to(out.dtype.element_ty), mask=store)
        else:
            part = at * splits + split
            tl.store(partial + part[:, None] * HEAD_DIM + d[None, :], result, mask=store)
            tl.store(log_mass + part, tl.where(total == 0.0, float("-inf"), best + tl.log2(total)), mask=live)


@triton.jit(do_not_specialize=["splits"])
def _merge_kernel(partial, log_mass, out, splits, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
                  S: tl.constexpr, D: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    if EARLY:
        gdc_wait()
    at = tl.program_id(0).to(tl.int64) * HEADS + tl.program_id(1)
    s = tl.arange(0, S)
    d = tl.arange(0, D)
    wide = d < HEAD_DIM
    weight = tl.load(log_mass + at * splits + s, mask=s < splits, other=float("-inf"))
    best = tl.max(weight, axis=0)
    weight = tl.exp2(weight - tl.where(best == float("-inf"), 0.0, best))
    there = (s < splits)[:, None] & wide[None, :]
    part = tl.load(partial + (at * splits + s)[:, None] * HEAD_DIM + d[None, :], mask=there, other=0.0)
    part = tl.where((weight > 0.0)[:, None] | (weight != weight)[:, None], part, 0.0)
    total = tl.sum(weight, axis=0)
    merged = tl.sum(part * weight[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out + at * HEAD_DIM + d, merged.to(out.dtype.element_ty), mask=wide)


def attend(q: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, tiles: Tiles, scale: float) -> Tensor:
    """q [B, H, hd] -> [B, H * hd]; arguments as of paged.attend. Rows that belong to no tile are left as they are."""
    rows, heads, head_dim = q.shape
    kv_heads = keys.shape[1]
    group, splits = heads // kv_heads, tiles.splits
    out = q.new_empty(rows, heads * head_dim)  # [B, H * hd]
    if rows == 0:
        return out
    partial = log_mass = out
    if splits > 1:
        partial = torch.empty(rows, heads, splits, head_dim, dtype=torch.float32, device=q.device)  # [B, H, S, hd]
        # A row outside of all tiles merges nothing but what it finds here.
        log_mass = torch.empty(rows, heads, splits, dtype=torch.float32, device=q.device)  # [B, H, S]
    wide = max(16, triton.next_power_of_2(head_dim))
    lanes = tile_lanes(tiles.height, group)
    block, stages = launch_shape(wide * keys.element_size(), lanes, splits)
    early = starts_early(q)
    _attend_kernel[(tiles.slot.shape[0], kv_heads, splits)](
        q, keys, values, out, partial, log_mass, tiles.slot, tiles.first, tiles.rows,
        tiles.reach, tiles.nodes, batch.prefix, batch.mask, batch.pages, batch.pages.stride(0), batch.tail_start,
        scale * 1.4426950408889634, splits,
        batch.page_size, group, kv_heads, head_dim, TAIL_ROWS,
        splits == 1, lanes, block, wide, early, num_warps=4, num_stages=stages, launch_pdl=early,
    )  # fmt: skip
    if splits > 1:
        _merge_kernel[(rows, heads)](
            partial, log_mass, out, splits, heads, head_dim, triton.next_power_of_2(splits), wide, early,
            num_warps=4, launch_pdl=early,
        )  # fmt: skip
    return out


def compile_all(q: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch) -> None:
    """Compile every variant of the kernels for such tensors, so that no request waits for it: q [1, H, hd], a batch of one row.

    keys, values: as of `attend`; they are not touched.
    """
    group = q.shape[1] // keys.shape[1]
    nothing = torch.zeros(1, dtype=torch.int64, device=q.device)  # [1]
    lanes = FEWEST_LANES
    while lanes <= max(LANES, tile_lanes(1, group)):
        for splits in SPLITS:
            tiles = Tiles(nothing, nothing, nothing, nothing, nothing, max(1, lanes // group), splits)
            attend(q, keys, values, batch, tiles, 1.0)
        lanes *= 2


def launch_shape(width: int, lanes: int, splits: int) -> tuple[int, int]:
    """Context tokens of a block, and pipeline stages; width: bytes of a key.

    Undivided contexts are many: large blocks keep the most bytes in flight, as far as registers hold the scores of all lanes.
    Divided ones are short: smaller blocks begin sooner.
    """
    if width > 512:
        return 32, 3
    return (128, 2) if splits == 1 and width <= 256 and lanes <= 32 else (64, 3)


def tile_lanes(height: int, group: int) -> int:
    """Lanes of a tile of `height` rows with `group` query heads a key-value head: a power of two that the matrix units take."""
    return max(16, triton.next_power_of_2(height * group))
