"""Divides rows into tiles in one Triton kernel: tiling.tile on a GPU, where its torch twin is forty launches over next to none.

Every program finds the groups of some tiles by itself, from the sizes of all groups: a tile belongs to the first group that ends
behind it, when groups are counted in tiles.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaserve.runtime.batch import ForwardBatch

_TILES = 16
"""Tiles of a program."""
_HIGHEST = 64
"""Most rows of a tile."""
_GROUPS = (64, 256, 1024)
"""Groups that a variant of the kernel can count, so that few of them are ever compiled."""


@triton.jit
def _either(a, b):
    return a | b


@triton.jit(
    do_not_specialize=["groups", "count", "height"],
    do_not_specialize_on_alignment=["start", "slot", "prefix", "mask", "found"],
)
def _tile_kernel(
    start, slot, prefix, mask, found, groups, count, height, T: tl.constexpr, H: tl.constexpr, G: tl.constexpr
):  # fmt: skip
    g = tl.arange(0, G)
    there = g < groups
    begin = tl.load(start + g, mask=there, other=0)
    end = tl.load(start + g + 1, mask=there, other=0)
    own = ((end - begin + height - 1) // height).to(tl.int32)  # tiles of each group
    stop = tl.cumsum(own, axis=0)
    tile = tl.program_id(0) * T + tl.arange(0, T)
    passed = there[None, :] & (stop[None, :] <= tile[:, None])
    group = tl.sum(passed.to(tl.int32), axis=1)
    before = tl.sum(tl.where(passed, own[None, :], 0), axis=1)
    real = group < groups
    group = tl.minimum(group, groups - 1)
    first = tl.load(start + group) + (tile - before) * height
    rows = tl.where(real, tl.minimum(tl.load(start + group + 1) - first, height), 0)
    first = tl.where(real, first, 0)
    h = tl.arange(0, H)
    row = first[:, None] + h[None, :]
    mine = h[None, :] < rows[:, None]
    reach = tl.max(tl.load(prefix + row, mask=mine, other=0), axis=1)
    nodes = tl.reduce(tl.load(mask + row, mask=mine, other=0), 1, _either)
    live = tile < count
    tl.store(found + tile, tl.load(slot + group), mask=live)
    tl.store(found + count + tile, first, mask=live)
    tl.store(found + 2 * count + tile, rows, mask=live)
    tl.store(found + 3 * count + tile, reach, mask=live)
    tl.store(found + 4 * count + tile, nodes, mask=live)


def able(groups: int, height: int) -> bool:
    """Whether the kernel can count so many groups, in tiles so high."""
    return 0 < groups <= _GROUPS[-1] and height <= _HIGHEST


def tiles_of(batch: ForwardBatch, height: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Slot, first row, rows, reach and nodes of `count` tiles of at most `height` rows, [T] int64 each."""
    found = torch.empty(5, count, dtype=torch.int64, device=batch.start.device)  # [5, T]
    groups = batch.slot.shape[0]
    if count:
        _tile_kernel[(triton.cdiv(count, _TILES),)](
            batch.start, batch.slot, batch.prefix, batch.mask, found, groups, count, height,
            _TILES, _HIGHEST, next(most for most in _GROUPS if most >= groups),
        )  # fmt: skip
    slot, first, rows, reach, nodes = found.unbind(0)
    return slot, first, rows, reach, nodes


def compile_all(batch: ForwardBatch) -> None:
    """Compile every variant of the kernel, so that no request waits for it; batch: any with one row."""
    for groups in _GROUPS:
        start = torch.ones(groups + 1, dtype=torch.int64, device=batch.start.device)  # [G + 1], all groups empty but the first
        start[:1] = 0
        slot = torch.zeros(groups, dtype=torch.int64, device=batch.start.device)  # [G]
        tiles_of(replace(batch, start=start, slot=slot), 1, 1)
