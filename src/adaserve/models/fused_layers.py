"""All layers of a narrow decoder in five kernels each (kernels/layer_products.py), on a GPU, for few rows.

    residual -> [ norm, qkv, rotate, store -> attend -> output (+) -> norm, gate, up, silu * -> down (+) ] -> residual

where (+) adds to the residual stream. The loop in decoder.py takes nine, and a layer that reads its weights in two microseconds
lasts as long as its kernels take to follow one another.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from adaserve.attention.paged import attend
from adaserve.cache.pool import KVPool
from adaserve.kernels.layer_products import MOST_ROWS, normed_gate, normed_qkv, pays, plain, product_add
from adaserve.kernels.rotary import RotaryTable
from adaserve.models.config import ModelConfig
from adaserve.models.layer import Layer
from adaserve.runtime.batch import ForwardBatch


class FusedLayers:
    """The layers of one decoder, which must be `able`."""

    def __init__(self, config: ModelConfig, layers: Sequence[Layer], table: RotaryTable) -> None:
        self._config = config
        self._table = table
        self._layers = tuple(layers)
        # Asked once: where weights are packed, as in tests on a CPU, every asking unpacks them.
        self._weights = [tuple(p.weight for p in (x.qkv, x.output, x.gate_up, x.down)) for x in layers]

    @staticmethod
    def able(config: ModelConfig, layers: Sequence[Layer], dtype: torch.dtype) -> bool:
        """Whether the kernels take such layers with activations of this type, and are faster than the loop."""
        sizes = config.hidden, config.heads, config.kv_heads, config.head_dim, config.intermediate
        if (
            dtype not in (torch.bfloat16, torch.float32) or not layers or not pays(*sizes)
        ):  # half of a float overflows before its norm
            return False
        parts = [w for x in layers for p in (x.qkv, x.output, x.gate_up, x.down) for w in (p.weight, p.bias)]
        parts += [w for x in layers for w in (x.input_norm, x.mlp_norm, x.q_norm, x.k_norm)]
        return plain(torch.empty(0, dtype=dtype), *(w for w in parts if w is not None))

    def takes(self, rows: int) -> bool:
        """Whether a pass over so many rows is short enough."""
        return 0 < rows <= MOST_ROWS

    def __call__(self, residual: Tensor, batch: ForwardBatch, pool: KVPool) -> Tensor:
        """Run a pass: the embedded rows [B, hidden] -> the residual stream after the last layer [B, hidden].

        Keys and values are written to `pool`.
        """
        scale = self._config.head_dim**-0.5
        for index in range(len(self._layers)):
            keys, values = pool.keys[index], pool.values[index]  # [R, KH, hd] each
            q = self._project(index, residual, batch.position, batch.dest, keys, values)  # [B, H, hd]
            residual = self._finish(index, attend(q, keys, values, batch, scale), residual)  # [B, hidden]
        return residual

    def _project(self, index: int, residual: Tensor, position: Tensor, dest: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What comes before attention: queries [B, H, hd]."""
        layer, weight = self._layers[index], self._weights[index][0]
        norms = layer.q_norm, layer.k_norm
        rows = position, dest, keys, values
        return normed_qkv(residual, layer.input_norm, weight, layer.qkv.bias, self._table, *rows, *norms, self._config.eps)

    def _finish(self, index: int, attended: Tensor, residual: Tensor) -> Tensor:
        """What comes after attention: attended [B, H * hd], residual [B, hidden] -> [B, hidden]."""
        layer, (_, output, gate_up, down) = self._layers[index], self._weights[index]
        residual = product_add(attended, output, layer.output.bias, residual)
        gated = normed_gate(residual, layer.mlp_norm, gate_up, layer.gate_up.bias, self._config.eps)  # [B, I]
        return product_add(gated, down, layer.down.bias, residual)

    def prepare(self) -> None:
        """Have the kernels compiled, once for all numbers of rows, so that no request waits for it."""
        config, like = self._config, self._layers[0].input_norm
        keys, values = (like.new_empty(1, config.kv_heads, config.head_dim) for _ in range(2))  # [1, KH, hd]
        residual, attended = like.new_zeros(1, config.hidden), like.new_zeros(1, config.heads * config.head_dim)
        nowhere = torch.zeros(1, dtype=torch.int64, device=like.device)
        self._project(0, residual, nowhere, nowhere, keys, values)
        self._finish(0, attended, residual)
