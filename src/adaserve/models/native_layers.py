"""All layers of a decoder in one native call (kernels/layers.cpp), where every kernel of theirs is native."""

from array import array
from collections.abc import Sequence

from torch import Tensor

from adaserve.attention.paged import attention_kernel
from adaserve.cache.pool import KVPool
from adaserve.kernels import native
from adaserve.kernels.rotary import ROTATIONS, RotaryTable
from adaserve.models.config import ModelConfig
from adaserve.models.layer import Layer
from adaserve.runtime.batch import ForwardBatch


class NativeLayers:
    """The layers of one decoder as the addresses of kernels and weights."""

    def __init__(self, config: ModelConfig, layers: Sequence[Layer], norm: Tensor, table: RotaryTable) -> None:
        """norm [hidden]: the final one. They must be `able`."""
        run = native.function("layers", "run_layers", "pppddpp")
        add_norm, gate = native.address("rows", "add_rms_norm"), native.address("rows", "silu_mul")
        assert run is not None and add_norm is not None and gate is not None, "the caller asked `able`"
        self._run, self._add_norm, self._gate = run, add_norm, gate
        self._alive = layers, norm, table
        self._eps, self._scale = config.eps, config.head_dim**-0.5
        words: list[int] = []
        for layer, next_norm in zip(layers, [*(layer.input_norm for layer in layers[1:]), norm], strict=True):
            for linear in (layer.qkv, layer.output, layer.gate_up, layer.down):
                words += linear.addresses or (0, 0, 0)
            words += [0 if x is None else x.data_ptr() for x in (layer.q_norm, layer.k_norm, layer.mlp_norm, next_norm)]
        self._layers = array("q", words)
        sizes = len(layers), config.hidden, config.heads, config.kv_heads, config.head_dim, config.intermediate
        self._shape = array("q", [*sizes, table.cos.data_ptr(), table.sin.data_ptr()])

    @staticmethod
    def able(layers: Sequence[Layer], norm: Tensor, table: RotaryTable) -> bool:
        """Whether every kernel of these layers is native."""
        norms = [x for layer in layers for x in (layer.q_norm, layer.k_norm, layer.mlp_norm, layer.input_norm) if x is not None]
        products = [linear for layer in layers for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)]
        return (
            native.fits(norm, table.cos, table.sin, *norms)
            and all(linear.addresses is not None for linear in products)
            and all(native.library(name) is not None for name in ("layers", "rows", "attention"))
        )

    @property
    def addresses(self) -> tuple[int, int]:
        """For native callers: where layers and shape are, of layers.h."""
        return self._layers.buffer_info()[0], self._shape.buffer_info()[0]

    @property
    def constants(self) -> tuple[float, float]:
        """For native callers: the norms' epsilon and the scale of attention's scores."""
        return self._eps, self._scale

    def words(
        self, pool: KVPool, pages: Tensor, page_size: int, rows: Sequence[int] = (0,) * 5, groups: Sequence[int] = (0,) * 3
    ) -> "array[int] | None":
        """A pass over `pool` for native code, as layers.h has it; None where the pool does not suit.

        pages [slots, P]. rows: how many, then where position, dest, prefix and mask are. groups: how many, then where start and
        slot are. Zeros: for the caller's native code to fill in.
        """
        keys, values = pool.keys, pool.values  # [layers, R, KH, hd]
        attend, rotation = attention_kernel(keys.dtype), ROTATIONS.get(keys.dtype)
        if attend is None or rotation is None or not native.readable(keys, values, pages):
            return None
        rotate, attend_at = native.address("rows", rotation), native.address("attention", attend)
        assert rotate is not None and attend_at is not None, "both are beside others that are there"
        return array(
            "q",
            [
                *(self._add_norm, self._gate, rotate, attend_at),
                *(keys.data_ptr(), values.data_ptr(), keys.stride(0) * keys.element_size()),
                *rows,
                *groups,
                *(pages.data_ptr(), pages.shape[1], page_size, pool.tail_start),
            ],
        )

    def __call__(self, x: Tensor, residual: Tensor, batch: ForwardBatch, pool: KVPool) -> bool:
        """Run a pass in place, as Decoder's own loop does; False where some tensor does not suit, and nothing was done.

        x, residual [B, hidden] float32: the rows after the first norm and before it; x becomes the rows after the last norm, and
        residual is used up. Keys and values are written to `pool`.
        """
        numbers = batch.position, batch.dest, batch.prefix, batch.mask, batch.start, batch.slot
        if not native.fits(x, residual) or not native.readable(*numbers):
            return False
        position, dest, prefix, mask, start, slot = (part.data_ptr() for part in numbers)
        rows, groups = (len(x), position, dest, prefix, mask), (len(batch.slot), start, slot)
        words = self.words(pool, batch.pages, batch.page_size, rows, groups)
        if words is None:
            return False
        self._run(*self.addresses, words.buffer_info()[0], *self.constants, x.data_ptr(), residual.data_ptr())
        return True
