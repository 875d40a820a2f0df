"""Divides the rows of a batch into tiles for attention on a GPU, without asking the device for anything."""

import torch
from torch import Tensor

from adaserve.runtime.batch import ForwardBatch, Tiles

FEWEST_LANES, LANES = 16, 64
"""(row, query head) pairs of a tile: the fewest that the matrix units take, and the most that pay."""
PROGRAMS = 256
"""Enough to keep every processor of a large GPU loading: two for each of 132. More would be merged for nothing."""
SHARE = 128
"""Least context of a split; a smaller one costs more to merge than it saves."""
SPLITS = (1, 2, 4, 8, 16, 32)
"""Shares that a context may be divided into; each is a variant of a kernel."""


def tile(batch: ForwardBatch, *, group: int, kv_heads: int, longest: int | None) -> Tiles:
    """Divide a batch. group: query heads a KV head; longest: most context of a row, as the host knows it, or None."""
    rows, groups = batch.prefix.shape[0], batch.slot.shape[0]
    height = tile_height(rows, groups, group)
    count = tile_count(rows, groups, height)
    reach = batch.pages.shape[1] * batch.page_size if longest is None else longest
    divide = tiles_reference
    if batch.start.is_cuda:
        from adaserve.attention import triton_tiling

        divide = triton_tiling.tiles_of if triton_tiling.able(groups, height) else tiles_reference
    return Tiles(*divide(batch, height, count), height, splits(count * kv_heads, reach))


def tiles_reference(batch: ForwardBatch, height: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The plain torch twin of triton_tiling.tiles_of: slot, first row, rows, reach and nodes of every tile, [T] each."""
    rows = batch.prefix.shape[0]
    slot, first, size = _tiles(batch.start, batch.slot, height, count)
    row = first[:, None] + torch.arange(height, device=first.device)  # [T, height]
    own = torch.arange(height, device=first.device) < size[:, None]
    row = row.clamp(max=max(rows - 1, 0))
    reaches = torch.where(own, batch.prefix[row], 0).amax(1) if rows else torch.zeros_like(size)  # [T]
    nodes = _union(torch.where(own, batch.mask[row], 0)) if rows else torch.zeros_like(size)  # [T]
    return slot, first, size, reaches, nodes


def _union(masks: Tensor) -> Tensor:
    """All bits of each row: masks [T, height] -> [T]."""
    while masks.shape[1] > 1:
        half = masks.shape[1] // 2
        masks = torch.cat([masks[:, :half] | masks[:, half : 2 * half], masks[:, 2 * half :]], dim=1)
    return masks[:, 0]


def tile_height(rows: int, groups: int, group: int) -> int:
    """Rows of a tile, so that it holds all of a usual group where that is possible."""
    usual = -(-rows // max(groups, 1))
    lanes = FEWEST_LANES
    while lanes < min(usual * group, LANES):
        lanes *= 2
    return max(1, lanes // group)


def tile_count(rows: int, groups: int, height: int) -> int:
    """How many tiles any division of `rows` rows into `groups` groups may need: each group ends in a tile not quite full."""
    return min(groups, rows) + rows // height


def splits(programs: int, longest: int) -> int:
    """How many shares to divide the context into: a power of two."""
    wanted = min(PROGRAMS // max(programs, 1), longest // SHARE, SPLITS[-1])
    return 1 << max(wanted, 1).bit_length() - 1


def _tiles(start: Tensor, slot: Tensor, height: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slot, first row and rows of every tile, [T] each; start [G + 1], slot [G]."""
    size = start[1:] - start[:-1]  # [G]
    own = (size + height - 1) // height  # [G] tiles
    end = own.cumsum(0)  # [G]
    index = torch.arange(count, device=start.device)  # [T]
    found = torch.searchsorted(end, index, right=True)  # [T], G for those that are not needed
    group = found.clamp(max=slot.shape[0] - 1)
    first = start[group] + (index - end[group] + own[group]) * height
    rows = torch.where(found < slot.shape[0], (start[group + 1] - first).clamp(max=height), 0)
    return slot[group], first, rows
