"""Runs passes over a decoder: as they come, or on a GPU as CUDA graphs of a few fixed sizes.

A graph is captured for a bucket: so many rows, so many groups, so many splits of the context. A pass is padded to its bucket:

    rows    | token, position, prefix, mask, dest of the batch | idle rows, which write to a row of the pool that nobody reads
    groups  | start and slot of the batch                      | groups without rows

Launching the hundreds of small kernels of a pass one by one takes the host longer than they take the device.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from adaserve.attention.tiling import splits, tile, tile_count, tile_height
from adaserve.cache.pool import KVPool
from adaserve.kernels.places import Laid
from adaserve.models.decoder import Decoder
from adaserve.padding import bucket
from adaserve.runtime.batch import ForwardBatch
from adaserve.runtime.capture import capture, reach
from adaserve.runtime.joined import Joined

GROUPS = (1, 2, 4, 8, 16, 32, 48, 72, 96, 144, 272, 528)
"""Buckets of groups: few, for an empty one costs next to nothing. Beside the requests there are padding and prompt chunks."""
SHEET = 256
"""Rows that go through all layers together on a CPU: their activations stay in its caches, where a larger pass would carry every
layer's to memory and back. Reading the weights once more costs a tenth of computing with them."""
MOST_GRAPHS = 160
"""Graphs that are kept; beyond, the one that was not used for the longest time goes."""


class Passes(Protocol):
    """Runs a decoder's passes over its pool."""

    def __call__(self, rows: Joined, longest: int) -> Tensor:
        """Hidden states [B, hidden] of all rows, to be read before the next pass. longest: at least each row's prefix."""
        ...

    def plain(self, batch: ForwardBatch, longest: int) -> Tensor:
        """The same as it comes, for those who capture more than a pass."""
        ...

    def forget(self) -> None:
        """Let go of what was captured, as Capture does."""
        ...


class PlainPasses:
    """Runs every pass as it comes, a large one on a CPU in sheets of rows.

    Rows need keys and values of earlier rows alone: of those before them in a chunk, of ancestors in a tree. So passes over runs
    of rows, one after the other, do what a pass over all of them does.
    """

    def __init__(self, decoder: Decoder, pool: KVPool) -> None:
        self._decoder = decoder
        self._pool = pool

    def __call__(self, rows: Joined, longest: int) -> Tensor:
        """Run the pass."""
        return self.plain(rows.batch(), longest)

    def plain(self, batch: ForwardBatch, longest: int) -> Tensor:
        """Run the pass."""
        if batch.token.is_cuda or len(batch.token) <= SHEET:
            return self._decoder.forward(batch, self._pool)
        return torch.cat([self._decoder.forward(sheet, self._pool) for sheet in sheets(batch, SHEET)])

    def forget(self) -> None:
        """There is nothing."""


def sheets(batch: ForwardBatch, most: int) -> list[ForwardBatch]:
    """Divide a batch into runs of at most `most` rows, nearly equal in length; a group may be cut, and is empty elsewhere."""
    rows = len(batch.token)
    count = -(-rows // most)
    bounds = [rows * i // count for i in range(count + 1)]
    return [
        replace(
            batch,
            token=batch.token[first:last],
            position=batch.position[first:last],
            prefix=batch.prefix[first:last],
            mask=batch.mask[first:last],
            dest=batch.dest[first:last],
            start=batch.start.clamp(first, last) - first,
        )
        for first, last in itertools.pairwise(bounds)
    ]


@dataclass(frozen=True)
class _Graph:
    """A captured pass: its inputs in place, R rows in G groups, and where its result appears, hidden [R, hidden]."""

    graph: torch.cuda.CUDAGraph
    inputs: Laid
    hidden: Tensor


class GraphPasses:
    """Captures a pass the first time that its bucket occurs, and replays it from then on; on a CUDA device alone.

    idle_row: a pool row that belongs to nobody.
    """

    def __init__(self, decoder: Decoder, pool: KVPool, idle_row: int) -> None:
        self._decoder = decoder
        self._pool = pool
        self._group = decoder.config.heads // decoder.config.kv_heads
        self._idle = idle_row
        self._memory = torch.cuda.graph_pool_handle()  # all graphs share their intermediate tensors: one runs at a time
        self._stream = torch.cuda.Stream(decoder.device)
        self._graphs: dict[tuple[int, int, int], _Graph] = {}

    def __call__(self, rows: Joined, longest: int) -> Tensor:
        """Run the pass."""
        size, places = bucket(rows.rows), next((places for places in GROUPS if places >= rows.groups), None)
        if size is None or places is None:
            return self.plain(rows.batch(), longest)
        programs = tile_count(size, places, tile_height(size, places, self._group)) * self._decoder.config.kv_heads
        key = size, places, splits(programs, reach(longest))
        found = self._graphs.pop(key, None) or self._capture(rows, *key)
        self._graphs[key] = found  # the latest last
        rows.lay(found.inputs, self._idle)
        found.graph.replay()
        return found.hidden[: rows.rows]

    def plain(self, batch: ForwardBatch, longest: int) -> Tensor:
        """Run the pass as it comes."""
        tiles = batch.tiles or tile(batch, group=self._group, kv_heads=self._decoder.config.kv_heads, longest=longest)
        return self._decoder.forward(replace(batch, tiles=tiles), self._pool)

    def forget(self) -> None:
        """Let go of the graphs."""
        self._graphs.clear()

    def _capture(self, joined: Joined, size: int, places: int, parts: int) -> _Graph:
        """Capture a pass of these sizes. The first of all runs once before, to have kernels compiled and all set up."""
        if len(self._graphs) >= MOST_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        device = self._decoder.device
        numbers = torch.zeros(5, size, dtype=torch.int64, device=device)  # [5, R]
        start = torch.zeros(places + 1, dtype=torch.int64, device=device)  # [G + 1]
        slot = torch.zeros(places, dtype=torch.int64, device=device)  # [G]
        token, position, prefix, mask, dest = numbers
        dest.fill_(self._idle)
        inputs = Laid((token, position, prefix, mask, dest), start, slot)
        static = joined.table.batch_of(inputs, joined.tail_start)

        def run() -> Tensor:
            tiles = tile(static, group=self._group, kv_heads=self._decoder.config.kv_heads, longest=None)
            return self._decoder.forward(replace(static, tiles=replace(tiles, splits=parts)), self._pool)

        if not self._graphs:
            joined.lay(inputs, self._idle)
            run()
        graph, hidden = capture(run, self._memory, self._stream)
        return _Graph(graph, inputs, hidden)
