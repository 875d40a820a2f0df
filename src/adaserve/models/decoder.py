"""The one decoder of all families: Llama, Mistral, Qwen2, Qwen3 and what calls itself one of them.

    embedding -> [ norm -> qkv -> rotate, store -> attend -> output (+) norm -> gate, up -> silu * -> down (+) ] -> norm -> head

where (+) adds to the residual stream. Of a decoder that several ranks share (parallel/), each has some heads, neurons and tokens:
what embedding, output and down give is summed over the ranks, and the head's scores are joined.
Families differ only in whether a bias or a per-head norm is there. All rows of a batch are alike: see runtime/batch.py.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from adaserve.attention.paged import attend
from adaserve.cache.pool import KVPool
from adaserve.kernels.gate import silu_mul
from adaserve.kernels.linear import Linear
from adaserve.kernels.norm import embed_rms_norm, rms_norm
from adaserve.kernels.rotary import RotaryTable, rotate_and_store
from adaserve.models.config import ModelConfig
from adaserve.models.fused_layers import FusedLayers
from adaserve.models.layer import Layer
from adaserve.models.native_layers import NativeLayers
from adaserve.parallel.group import ALONE, Group
from adaserve.runtime.batch import ForwardBatch


@dataclass(frozen=True)
class Decoder:
    """A language model that reads keys and values from a paged pool and writes them there.

    embedding  [V, hidden] in the weights' dtype
    norm       [hidden]
    head       hidden -> V; may share the embedding's memory
    table      rotary angles; its length is the longest context that this decoder can serve
    dtype      of activations: float64 for float64 weights; on a CPU float32 otherwise
    group      the ranks that share it. Heads, key-value heads and neurons in `config` and V in embedding and head are then this
               rank's own, and V may be padded; config.vocab_size is the whole vocabulary
    """

    config: ModelConfig
    embedding: Tensor
    layers: tuple[Layer, ...]
    norm: Tensor
    head: Linear
    table: RotaryTable
    dtype: torch.dtype
    group: Group = ALONE

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.embedding.device

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of keys and values: the weights' own."""
        return self.embedding.dtype

    @property
    def max_positions(self) -> int:
        """The longest context in tokens."""
        return self.table.cos.shape[0]

    def new_pool(self, *, pages: int, page_size: int, slots: int) -> KVPool:
        """Make an empty KV pool that fits this model."""
        return KVPool(
            layers=self.config.layers,
            heads=self.config.kv_heads,
            head_dim=self.config.head_dim,
            pages=pages,
            page_size=page_size,
            slots=slots,
            dtype=self.kv_dtype,
            device=self.device,
        )

    def forward(self, batch: ForwardBatch, pool: KVPool) -> Tensor:
        """Run all rows through all layers; their keys and values are written to `pool`. Ranks run the same rows together.

        Returns the hidden states after the final norm  # [B, hidden]
        """
        if self.fused_layers is not None and self.fused_layers.takes(len(batch.token)):
            residual = self.fused_layers(self._embed(batch.token), batch, pool)  # [B, hidden]
            return rms_norm(residual, self.norm, self.config.eps)
        x, residual = self._embed_normed(batch.token)  # [B, hidden] each
        if self.native_layers is not None and self.native_layers(x, residual, batch, pool):
            return x
        return self._run_layers(x, residual, batch, pool)

    @cached_property
    def native_layers(self) -> NativeLayers | None:
        """The layers in one call, where they are native and nobody else has a share of them."""
        parts = self.layers, self.norm, self.table
        return NativeLayers(self.config, *parts) if self.group.size == 1 and NativeLayers.able(*parts) else None

    @cached_property
    def fused_layers(self) -> FusedLayers | None:
        """The layers in few kernels, on a GPU where they are narrow and nobody else has a share of them."""
        able = self.device.type == "cuda" and self.group.size == 1 and FusedLayers.able(self.config, self.layers, self.dtype)
        return FusedLayers(self.config, self.layers, self.table) if able else None

    def prepare(self) -> None:
        """On a GPU, have all kernels but attention's compiled, so that no request waits for it."""
        self.layers[0].prepare()
        self.group.prepare(self.norm, self.dtype, self.config.eps)
        if self.group.size == 1:  # else it is no kernel of its own, and other ranks would have to take part
            self._embed_normed(torch.zeros(1, dtype=torch.int64, device=self.device))
        if self.fused_layers is not None:
            self.fused_layers.prepare()

    def _run_layers(self, x: Tensor, residual: Tensor, batch: ForwardBatch, pool: KVPool) -> Tensor:
        """Layer by layer: what NativeLayers does in one call, and FusedLayers in fewer kernels.

        x, residual [B, hidden], normed and not -> [B, hidden], normed.
        """
        eps = self.config.eps
        scale = self.config.head_dim**-0.5
        next_norms = [layer.input_norm for layer in self.layers[1:]] + [self.norm]
        for index, (layer, next_norm) in enumerate(zip(self.layers, next_norms, strict=True)):
            keys, values = pool.keys[index], pool.values[index]  # [R, KH, hd] each
            q = rotate_and_store(
                layer.qkv(x), self.table, batch.position, batch.dest, keys, values, layer.q_norm, layer.k_norm, eps
            )  # [B, H, hd]
            attended = attend(q, keys, values, batch, scale)  # [B, H * hd]
            x, residual = self.group.sum_norm(layer.output(attended), residual, layer.mlp_norm, eps)
            summand = layer.down(silu_mul(layer.gate_up(x)))  # [B, hidden]
            x, residual = self.group.sum_norm(summand, residual, next_norm, eps)
        return x

    def logits(self, hidden: Tensor, vocabulary: int | None = None) -> Tensor:
        """Scores of every token after each of the given hidden states, e.g. some rows of what `forward` returned.

        hidden [R, hidden] -> [R, V], float64 for a float64 model, float32 otherwise. vocabulary: only the first so many tokens.
        """
        wanted = vocabulary or self.config.vocab_size
        own = min(wanted, self.head.out_features)  # of a share all, or at least the first so many tokens
        if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
            # Rounded to the weights' dtype the best scores would often tie.
            scores = torch.mm(hidden, self.head.weight[:own].t(), out_dtype=torch.float32)  # [R, V]
        else:
            scores = self.head(hidden) if own == self.head.out_features else self.head.first(hidden, own)  # [R, V]
            scores = scores if scores.dtype == torch.float64 else scores.float()
        return self.group.join(scores)[:, :wanted].contiguous()

    def _embed(self, token: Tensor) -> Tensor:
        """Rows [B] of this rank's embedding as activations  # [B, hidden]"""
        return self.embedding[token].to(self.dtype)

    def _embed_normed(self, token: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens [B] as the first layer reads them, normed and not: [B, hidden] each."""
        norm, eps = self.layers[0].input_norm, self.config.eps
        if self.group.size == 1:
            return embed_rms_norm(token, self.embedding, norm, eps, self.dtype)
        place = token - self.group.rank * self.embedding.shape[0]  # [B], among this rank's tokens
        mine = (place >= 0) & (place < self.embedding.shape[0])
        own = self._embed(torch.where(mine, place, 0))  # [B, hidden]
        rows = torch.where(mine[:, None], own, 0.0)  # [B, hidden], zeros of other ranks' tokens
        return self.group.sum_norm(rows, torch.zeros_like(rows), norm, eps)
