"""Matrix products with a model's weights: y = x W^T + b."""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor
from torch.nn import functional

from adaserve.kernels import native
from adaserve.kernels.gpu import on_gpu
from adaserve.kernels.packing import pack, pack_blocks, pack_fours, unpack, unpack_blocks, unpack_fours
from adaserve.kernels.quantized import BLOCK, QuantizedWeight


class Path(Enum):
    """How the CPU multiplies by bfloat16 weights and by quantised ones, which stand for the bfloat16 values of their blocks.

    INT8: for quantised weights alone. Rows are rounded to blocks of 8 bits, products and sums within a block of 32 are exact
        integers, and float32 fused multiply-adds bring the blocks' scales in, in order of k. Because sums of integers do not
        depend on who adds them, many rows may go through the tiles of a matrix unit: the bits stay.
    AMX: rows are rounded to bfloat16 too, products are exact, sums are float32 in tiles of the processor's matrix unit.
    DOT: rows are rounded to bfloat16; every output is one chain of the processor's steps over pairs of k, in order.
    FMA: rows stay float32; every output is one chain of fused multiply-adds in order of k.

    One path takes all batches, for their bits differ. INT8 comes before AMX because decoding is few rows, where reading and
    expanding blocks is what costs: at one row it takes 0.6 of AMX's time, at 16 as much, from 64 on 1.4 times (docs/log.md).
    """

    INT8 = "int8"
    AMX = "amx"
    DOT = "dot"
    FMA = "fma"


CHOICE = "ADASERVE_PRODUCTS"
"""The environment variable that names a path for all products of a process, for measurements and tests."""


def available_paths() -> list[Path]:
    """The paths that this machine has, best first; none without native kernels."""
    kernels = native.library("linear")
    if kernels is None:
        return []
    has = {Path.AMX: kernels.has_amx(), Path.INT8: kernels.has_vnni(), Path.DOT: kernels.has_dot(), Path.FMA: True}
    return [path for path in Path if has[path]]


def choose(path: Path | None, *, quantised: bool) -> Path | None:
    """The path for such weights: the one asked for, here or in the environment, or the best; None without native kernels.

    INT8 asked for means for quantised weights, and the best other one for the rest. Raises ValueError for a path that this
    machine does not have or that is none.
    """
    paths = available_paths()
    if not paths:
        return None
    asked = path or _from_environment()
    if asked is not None and asked not in paths:
        raise ValueError(f"products by {asked.value} are not available here; these are: {', '.join(p.value for p in paths)}")
    able = [p for p in paths if quantised or p is not Path.INT8]
    return asked if asked in able else able[0]


def _from_environment() -> Path | None:
    name = os.environ.get(CHOICE)
    if not name:
        return None
    if name not in {path.value for path in Path}:
        raise ValueError(f"{CHOICE}={name}: one of {', '.join(path.value for path in Path)} is meant")
    return Path(name)


def tile_rows() -> int:
    """Rows of a batch from which on INT8 goes through the matrix unit's tiles on this machine; 0 where it never does."""
    kernels = native.library("linear")
    return 0 if kernels is None else kernels.int8_tile_rows()


def products_status() -> str:
    """One line that says how products are computed here."""
    quantised, plain = choose(None, quantised=True), choose(None, quantised=False)
    if quantised is None or plain is None:
        return "torch"
    kernels = native.library("linear")
    assert kernels is not None, "there is a path"
    kernels.instructions.restype = ctypes.c_char_p
    tiles = f" (in tiles from {tile_rows()} rows on)" if quantised is Path.INT8 and tile_rows() else ""
    vectors = kernels.instructions().decode()
    return f"{quantised.value} for quantised weights{tiles}, {plain.value} for bfloat16, fma for float32; {vectors}"


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The plain torch twin of `Linear`: x [M, K], weight [N, K], bias [N] -> [M, N] in x.dtype."""
    return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _few_rows(x: Tensor, weight: Tensor) -> Tensor | None:
    """The product by the kernel for few rows and large weights, or None where that does not pay: [M, K], [N, K] -> [M, N]."""
    if not on_gpu(x) or x.element_size() != 2 or x.dtype != weight.dtype or not weight.is_contiguous():
        return None
    from adaserve.kernels import triton_linear

    return triton_linear.product(x, weight) if triton_linear.pays(x.shape[0], *weight.shape) else None


@dataclass(frozen=True)
class _Packed:
    """Weights laid out for a native kernel, and the addresses that a call needs.

    panels  as packing.py lays them out
    bias    [N] float32, or None
    unpack  back to the matrix [N, K]
    """

    multiply: native.Function
    multiply_at: int
    panels: Tensor
    bias: Tensor | None
    panels_at: int
    bias_at: int
    unpack: Callable[[], Tensor]


def _pack(weight: Tensor | QuantizedWeight, bias: Tensor | None, path: Path) -> _Packed | None:
    """Lay weights out for the native kernel, or None where none applies."""
    kernels = native.library("linear")
    assert kernels is not None, "there is a path"
    columns = kernels.panel_outputs()
    outputs, depth = weight.shape
    if isinstance(weight, QuantizedWeight):
        offsets = weight.offset is not None
        symbol = f"{path.value}_{'nibbles' if offsets else 'bytes'}"
        if path is Path.INT8:
            panels = pack_fours(weight)
            back = lambda: unpack_fours(panels, outputs, depth, offsets).dequantize().bfloat16()  # noqa: E731
        elif kernels.expands_blocks():
            panels = pack_blocks(weight, columns)
            back = lambda: unpack_blocks(panels, outputs, depth, columns, offsets).dequantize().bfloat16()  # noqa: E731
        else:
            return _pack(weight.dequantize().bfloat16(), bias, path)
    elif weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float32):
        # Float32 weights have one path. Steps along K: a tile's width for AMX, a 32-bit word for the vectors.
        narrow = weight.dtype == torch.bfloat16
        symbol = f"{path.value}_bf16" if narrow else "fma_float"
        panels = pack(weight, columns, (BLOCK if path is Path.AMX else 2) if narrow else 1)
        back = lambda: unpack(panels, outputs, depth)  # noqa: E731
    else:
        return None
    multiply = native.function("linear", symbol, "piipipp")
    multiply_at = native.address("linear", symbol)
    assert multiply is not None and multiply_at is not None, "the library is there"
    wide = None if bias is None else bias.float().contiguous()  # [N]
    return _Packed(multiply, multiply_at, panels, wide, panels.data_ptr(), 0 if wide is None else wide.data_ptr(), back)


class Linear:
    """A weight matrix [N, K], perhaps with a bias [N], that multiplies rows: x [M, K] -> [M, N] in x.dtype.

    float32 rows on the CPU take a native kernel with float32 sums; bfloat16, float32 and quantised weights are packed for it
    once, and the original is not kept. A sum is then made of the same operations in the same order, whatever M is: *a row's
    result does not depend, in any bit, on the other rows of the batch*. The torch twin, which takes everything else, promises no
    such thing. Quantised weights give exactly what the bfloat16 values of their blocks would give, but for INT8, which takes
    them as they are.

    path: see `choose`.
    """

    def __init__(self, weight: Tensor | QuantizedWeight, bias: Tensor | None = None, *, path: Path | None = None) -> None:
        chosen = choose(path, quantised=isinstance(weight, QuantizedWeight))
        self.out_features, self.in_features = weight.shape
        self._bias = bias
        self._packed = None if chosen is None else _pack(weight, bias, chosen)
        self._dtype = torch.bfloat16 if isinstance(weight, QuantizedWeight) else weight.dtype
        self._weight: Tensor | None = None
        if self._packed is None:
            plain = weight.dequantize().bfloat16() if isinstance(weight, QuantizedWeight) else weight
            # Without the kernel a float32 copy is twice the memory, but several times faster than torch's bfloat16.
            slow = plain.device.type == "cpu" and plain.dtype == torch.bfloat16
            self._weight = plain.float() if slow else plain

    @property
    def weight(self) -> Tensor:
        """The weight matrix [N, K]; unpacked at every call where it is packed, so not for the hot path."""
        if self._packed is not None:
            return self._packed.unpack()
        assert self._weight is not None
        return self._weight.to(self._dtype)

    @property
    def bias(self) -> Tensor | None:
        """The bias [N], if there is one."""
        return self._bias

    @property
    def addresses(self) -> tuple[int, int, int] | None:
        """For native callers: where the kernel is, its weights, and the bias or 0; None where torch computes."""
        packed = self._packed
        return None if packed is None else (packed.multiply_at, packed.panels_at, packed.bias_at)

    def prepare(self) -> None:
        """On a GPU, compile all that calls may need, so that no request waits for it; elsewhere there is nothing to do."""
        if self._weight is not None and self._weight.is_cuda:
            for rows in (1, 17):  # few rows come in tiles of 16 and 32
                self(self._weight.new_zeros(rows, self.in_features))

    def __call__(self, x: Tensor) -> Tensor:
        """x [M, K] -> [M, N]."""
        return self.first(x, self.out_features)

    def first(self, x: Tensor, n_out: int) -> Tensor:
        """The first n_out outputs (a multiple of 16, or all): x [M, K] -> [M, n_out]."""
        rows, depth = x.shape
        if depth != self.in_features or n_out > self.out_features:
            raise ValueError(f"{n_out} outputs of {rows} x {depth}: the weight is {self.out_features} x {self.in_features}")
        packed = self._packed
        if packed is None or x.dtype is not torch.float32:
            weight = self.weight if self._weight is None else self._weight
            few = _few_rows(x, weight) if self._bias is None and n_out == self.out_features else None
            if few is not None:
                return few
            return linear_reference(x, weight[:n_out], None if self._bias is None else self._bias[:n_out])
        if not x.is_contiguous():
            x = x.contiguous()
        out = torch.empty(rows, n_out)  # [M, n_out]
        packed.multiply(x.data_ptr(), rows, depth, packed.panels_at, n_out, packed.bias_at, out.data_ptr())
        return out
