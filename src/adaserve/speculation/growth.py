"""The growth of trees from the roots' hidden states: pass by pass, or in one native call (kernels/grow.cpp) to the same trees."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaserve.cache.pool import KVPool
from adaserve.kernels import native
from adaserve.models.decoder import Decoder
from adaserve.models.native_layers import NativeLayers
from adaserve.runtime.passes import SHEET, Passes
from adaserve.runtime.slots import SlotTable
from adaserve.speculation.beam import Beam
from adaserve.speculation.ranking import Ranked
from adaserve.step import Chunk
from adaserve.tree import MAX_NODES, CandidateTree, Source

_KERNELS = (
    ("layers", "run_layers"),
    ("rows", "rms_norm"),
    ("gumbel", "perturb_f32"),
    ("top", "top_tokens"),
    ("beam", "extend_beam"),
    ("places", "beam_rows"),
    ("places", "known_rows"),
)


@dataclass(frozen=True)
class GrowthByPasses:
    """A draft model, its pool, and how it is run; vocabulary: as of ModelDrafter."""

    decoder: Decoder
    pool: KVPool
    passes: Passes
    vocabulary: int | None

    def __call__(
        self, hidden: Tensor, slot: Tensor, room: Tensor, table: SlotTable, ranked: Ranked, depth: int, width: int, longest: int
    ) -> CandidateTree:
        """The beam's d steps from the roots' hidden states [a, hidden]; slot, room [a].  [a, d * w]

        longest: at least every context.
        """
        beam = Beam(width, room)
        for step in range(1, depth + 1):
            logits = self.decoder.logits(hidden, self.vocabulary)  # [a * r, V]
            rows = beam.extend(*ranked.likeliest(logits, step, width))
            if step < depth:
                batch = table.beam_batch(slot, rows.token, rows.mask, rows.tail, step, self.pool.tail_start)
                hidden = self.passes.plain(batch, longest)  # [a * w, hidden]
        return beam.tree()

    def prepare(self) -> None:
        """Nothing has to be compiled."""


@dataclass(frozen=True)
class NativeGrowth:
    """The same as addresses, and together with the pass that reads known tokens before.

    draft: words of grow.cpp's Draft; they point to what layers and decoder hold.
    """

    decoder: Decoder
    pool: KVPool
    layers: NativeLayers
    draft: "array[int]"

    @staticmethod
    def of(decoder: Decoder, pool: KVPool, vocabulary: int | None) -> "NativeGrowth | None":
        """For a decoder all of whose kernels are native, on a CPU that has them; else None."""
        layers, head, embedding = decoder.native_layers, decoder.head.addresses, decoder.embedding
        found = [native.address(*kernel) for kernel in _KERNELS] if layers is not None else [None]
        if layers is None or head is None or None in found or native.address("grow", "grow_trees") is None:
            return None
        if embedding.dtype not in (torch.float32, torch.bfloat16) or not native.readable(embedding):
            return None
        first_norm = decoder.layers[0].input_norm.data_ptr()
        weights = *layers.addresses, first_norm, embedding.data_ptr(), int(embedding.dtype == torch.bfloat16), *head
        kernels = [address for address in found if address is not None]
        proposed = min(vocabulary or decoder.config.vocab_size, decoder.head.out_features)
        return NativeGrowth(decoder, pool, layers, array("q", [*kernels, *weights, proposed]))

    def __call__(
        self, chunks: Sequence[Chunk], slot: Tensor, room: Tensor, table: SlotTable, ranked: Ranked, depth: int, width: int
    ) -> CandidateTree | None:
        """Read chunks, and grow trees from the last rows of the first ones; None where something does not suit: nothing was done.

        chunks: those of slot [a], then others'. slot, room [a].  [a, d * w]
        """
        n, columns, rows = len(slot), depth * width, sum(chunk.length for chunk in chunks)
        key = ranked.key
        numbers = slot, table.known, room, ranked.inverse, ranked.temperature, *(() if key is None else (key,))
        given = self.layers.words(self.pool, table.pages, table.page_size)
        if given is None or max(rows, n * width) > SHEET or columns > MAX_NODES or not native.readable(table.tokens, *numbers):
            return None
        token, parent = torch.empty(2, n, columns, dtype=torch.int64).unbind()  # [n, N]
        path_prob = torch.empty(n, columns, dtype=torch.float64)  # [n, N]
        known = array("q", [*(c.slot for c in chunks), *(c.start for c in chunks), *(c.length for c in chunks)])
        reading = known.buffer_info()[0], len(chunks), rows, table.tokens.data_ptr(), table.tokens.shape[1]
        pointers = [x.data_ptr() for x in numbers] + [0] * (key is None)
        found = token.data_ptr(), parent.data_ptr(), path_prob.data_ptr()
        trees = array("q", [*reading, n, width, depth, *pointers, *found])
        run = native.function("grow", "grow_trees", "pppdd")
        assert run is not None, "`of` saw it"
        run(*(words.buffer_info()[0] for words in (self.draft, given, trees)), *self.layers.constants)
        depths = torch.tensor([column // width + 1 for column in range(columns)])  # [N]
        return CandidateTree(token, parent, depths.expand_as(token), path_prob, torch.full_like(token, Source.MODEL))
