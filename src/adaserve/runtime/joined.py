"""What a pass is to compute, before it is written down: rows of trees, then chunks of known tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from adaserve.kernels.places import Laid, lay_rows
from adaserve.runtime.batch import ForwardBatch
from adaserve.runtime.slots import SlotTable, laid_of
from adaserve.step import Chunk


@dataclass(frozen=True)
class Joined:
    """Rows of trees, or None where there are none, then those of chunks of known tokens, causal by position; one group a chunk.

    table: where the tokens and pages stand. tail_start: as in a ForwardBatch.
    """

    table: SlotTable
    trees: ForwardBatch | None
    chunks: Sequence[Chunk]
    tail_start: int

    @property
    def rows(self) -> int:
        """B, how many rows."""
        return (0 if self.trees is None else len(self.trees.token)) + sum([c.length for c in self.chunks])

    @property
    def groups(self) -> int:
        """G, how many groups."""
        return (0 if self.trees is None else len(self.trees.slot)) + len(self.chunks)

    def batch(self) -> ForwardBatch:
        """The rows in tensors of their own."""
        if self.trees is None:
            return self.table.known_batch(self.chunks, self.tail_start)
        return self.table.with_chunks(self.trees, self.chunks)

    def lay(self, out: Laid, idle: int) -> None:
        """Write the rows to `out`, which holds at least so many, and idle ones behind them; see kernels.places.lay_rows."""
        lay_rows(out, None if self.trees is None else laid_of(self.trees), self.table.chunks(self.chunks), idle)
