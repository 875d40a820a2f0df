"""ForwardBatch: the rows of one model pass. There is one kind of row: no prefill mode, no decode mode.

Keys and values of a model live in one flat pool of rows per layer: first the pages, then every slot's scratch tail.

    pool row:  [ page 0 | page 1 | ... | page P-1 | tail of slot 0 | tail of slot 1 | ... ]
                 page_size rows each                MAX_NODES + 1 rows each

A row attends to `prefix` paged tokens of its slot (its own included if its key lives in a page) and to the tail rows of its slot
that its ancestor mask names (its own included if its key lives in the tail). Known tokens (prompt, root) live in pages, draft
nodes in the tail.
"""

from dataclasses import dataclass

from torch import Tensor

TAIL_ROWS = 64
"""Scratch rows a slot: one per bit of an ancestor mask."""


@dataclass(frozen=True)
class Tiles:
    """How attention on a GPU divides the rows: T tiles, each of some neighbouring rows of one group; empty ones come last.

    slot, first, rows  [T] int64  the tile's slot, its first row, and how many it has, at most `height`
    reach, nodes       [T] int64  the longest prefix of its rows, and all tail rows that they name, as bits
    splits             shares into which the context is divided, for processors that would idle otherwise
    """

    slot: Tensor
    first: Tensor
    rows: Tensor
    reach: Tensor
    nodes: Tensor
    height: int
    splits: int


@dataclass(frozen=True)
class ForwardBatch:
    """B rows in G groups; a group's rows are contiguous and belong to one slot.

    token    [B] int64      token ids
    position [B] int64      absolute positions, for rotary embedding
    prefix   [B] int64      paged tokens of the slot that the row attends to: positions [0, prefix)
    mask     [B] int64      bit j: attends to tail row j of its slot
    dest     [B] int64      pool row where its key and value are written before attention
    start    [G + 1] int64  first row of each group, and B
    slot     [G] int64      the slot of each group
    pages    [slots, P] int64  page table: pages of every slot, in order of position
    page_size  tokens a page
    tail_start pool row of slot 0's tail; slot s has rows [tail_start + s * TAIL_ROWS, ... + TAIL_ROWS)
    tiles      what attention on a GPU computes once for all layers; None where it does without
    """

    token: Tensor
    position: Tensor
    prefix: Tensor
    mask: Tensor
    dest: Tensor
    start: Tensor
    slot: Tensor
    pages: Tensor
    page_size: int
    tail_start: int
    tiles: Tiles | None = None
