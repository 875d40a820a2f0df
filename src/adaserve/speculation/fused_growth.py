"""The growth of trees pass by pass on a GPU, with all that is between two passes in a few kernels (kernels/beam_step.py).

hidden -> head -> beam_step, which fills columns of the trees -> rows and tiles of the next pass -> hidden
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adaserve.attention.tiling import splits, tile_count, tile_height
from adaserve.kernels.beam_step import Scores, Stand, Trees, able, beam_step, compile_all
from adaserve.kernels.gpu import KERNEL_DTYPES
from adaserve.models.decoder import Decoder
from adaserve.runtime.noise import noise_key
from adaserve.runtime.slots import SlotTable
from adaserve.speculation.growth import GrowthByPasses
from adaserve.speculation.ranking import Ranked
from adaserve.tree import MAX_NODES, CandidateTree, Source


@dataclass(frozen=True)
class FusedGrowth:
    """The same trees as `plain` grows, but for rounding; what does not suit the kernels, it grows."""

    plain: GrowthByPasses

    @staticmethod
    def suits(decoder: Decoder) -> bool:
        """Whether a decoder is where the kernels run."""
        return decoder.device.type == "cuda" and decoder.dtype in KERNEL_DTYPES

    def __call__(
        self, hidden: Tensor, slot: Tensor, room: Tensor, table: SlotTable, ranked: Ranked, depth: int, width: int, longest: int
    ) -> CandidateTree:
        """As GrowthByPasses."""
        decoder, n, columns = self.plain.decoder, len(slot), depth * width
        if not able(self._vocabulary, width) or columns > MAX_NODES:
            return self.plain(hidden, slot, room, table, ranked, depth, width, longest)
        heads = decoder.config.kv_heads
        height = tile_height(n * width, n, decoder.config.heads // heads)
        shares = splits(tile_count(n * width, n, height) * heads, longest)
        stand = Stand(slot, table.known, self.plain.pool.tail_start, height)
        trees = Trees.empty(n, columns, slot.device)
        for step in range(1, depth + 1):
            logits = decoder.logits(hidden, self.plain.vocabulary)  # [a * r, V]
            key = None if ranked.key is None else ranked.key[step - 1]
            scores = Scores(logits, ranked.inverse, ranked.temperature, key)
            found = beam_step(scores, room, trees, step, width, stand)
            if step < depth:
                batch = table.next_batch(found, slot, stand.tail_start, height, shares)
                hidden = self.plain.passes.plain(batch, longest)  # [a * w, hidden]
        source = torch.full_like(trees.token, Source.MODEL)
        return CandidateTree(trees.token, trees.parent, trees.depth, trees.path_prob, source)

    def prepare(self) -> None:
        """Have the kernels compiled for all widths, so that no request waits for it."""
        decoder = self.plain.decoder
        hidden = torch.zeros(1, decoder.config.hidden, dtype=decoder.dtype, device=decoder.device)  # [1, hidden]
        compile_all(decoder.logits(hidden, self.plain.vocabulary))
        zero = torch.zeros(1, dtype=torch.int64, device=decoder.device)  # [1]
        noise_key(zero, zero, zero)

    @property
    def _vocabulary(self) -> int:
        return self.plain.vocabulary or self.plain.decoder.config.vocab_size
