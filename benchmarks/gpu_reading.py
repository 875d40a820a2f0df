"""Reads known tokens with one decoder, in passes of any rows, without an engine: what passes cost, and what they say."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adaserve.attention.paged import prepare
from adaserve.kernels.gpu import KERNEL_DTYPES
from adaserve.models.decoder import Decoder
from adaserve.request import SamplingParams
from adaserve.runtime.batch import TAIL_ROWS
from adaserve.runtime.joined import Joined
from adaserve.runtime.passes import GraphPasses, Passes, PlainPasses
from adaserve.runtime.slots import SlotTable
from adaserve.step import Chunk, PageGrant, Placement

PAGE = 16


class Reader:
    """Texts on the slots of a table, each with its pages, and passes over them; on a GPU graphs, as an engine's are.

    passes: `passes(rows, longest)`, whose result the next call overwrites.
    """

    def __init__(self, decoder: Decoder, texts: Sequence[Sequence[int]]) -> None:
        longest, count = max(map(len, texts)) + TAIL_ROWS, len(texts)
        each = -(-longest // PAGE)
        table = SlotTable(slots=count, length=longest, page_size=PAGE, device=decoder.device, spare_page=count * each)
        for slot, text in enumerate(texts):
            table.place(Placement(slot, tuple(text), len(text), SamplingParams(), 0, 0, ()))
            table.grant([PageGrant(slot, 0, tuple(range(slot * each, slot * each + each)))])
        self._table = table
        self._pool = decoder.new_pool(pages=count * each + 1, page_size=PAGE, slots=count + 1)
        self.passes: Passes = PlainPasses(decoder, self._pool)
        if decoder.device.type == "cuda" and decoder.dtype in KERNEL_DTYPES:
            group = decoder.config.heads // decoder.config.kv_heads
            prepare(self._pool.keys[0], self._pool.values[0], self.rows([Chunk(count, 0, 1)]).batch(), group)
            self.passes = GraphPasses(decoder, self._pool, self._pool.tail_start + count * TAIL_ROWS)

    def rows(self, chunks: Sequence[Chunk]) -> Joined:
        """The rows of a pass."""
        return Joined(self._table, None, chunks, self._pool.tail_start)

    @torch.inference_mode()
    def __call__(self, chunks: Sequence[Chunk]) -> Tensor:
        """Hidden states of the chunks' rows, to be read before the next call.  [B, hidden]"""
        return self.passes(self.rows(chunks), max(chunk.start + chunk.length for chunk in chunks))


def in_passes(chunks: Sequence[Chunk], most: int) -> list[list[Chunk]]:
    """Share out whole chunks among passes of at most `most` rows, or one chunk."""
    passes: list[list[Chunk]] = []
    rows = most
    for chunk in chunks:
        if rows + chunk.length > most:
            passes.append([])
            rows = 0
        passes[-1].append(chunk)
        rows += chunk.length
    return passes
