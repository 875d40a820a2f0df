"""Matrix products with a model's weights: y = x W^T + b."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from adaserve.kernels import native

_SYMBOL = {torch.bfloat16: "linear_bf16", torch.float32: "linear_float"}  # by the weights' dtype


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The plain torch twin of `Linear`: x [M, K], weight [N, K], bias [N] -> [M, N] in x.dtype."""
    return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


@dataclass(frozen=True)
class _Packed:
    """Weights laid out for the native kernel, and the addresses that a call needs.

    panels  [P, K, C, 1] for float32, [P, ceil(K / 2), C, 2] for bfloat16: P panels of C outputs, padded with zeros
    bias    [N] float32, or None
    """

    multiply: native.Function
    panels: Tensor
    bias: Tensor | None
    panels_at: int
    bias_at: int


def _pack(weight: Tensor, bias: Tensor | None) -> _Packed | None:
    """Lay weights out for the native kernel, or None where it does not apply."""
    if weight.device.type != "cpu" or weight.dtype not in _SYMBOL:
        return None
    kernels, multiply = native.library("linear"), native.function("linear", _SYMBOL[weight.dtype], "piipipp")
    if kernels is None or multiply is None:
        return None
    columns = kernels.panel_outputs()
    outputs, depth = weight.shape
    pair = 2 if weight.dtype == torch.bfloat16 else 1
    count, steps = -(-outputs // columns), -(-depth // pair)
    panels = native.empty_huge(count, steps, columns, pair, dtype=weight.dtype)
    whole = outputs // columns if depth % pair == 0 else 0  # panels that need no padding, nor a second copy
    panels[:whole].copy_(weight[: whole * columns].reshape(whole, columns, steps, pair).transpose(1, 2))
    if whole < count:
        rest = functional.pad(weight[whole * columns :], (0, steps * pair - depth, 0, count * columns - outputs))
        panels[whole:].copy_(rest.view(count - whole, columns, steps, pair).transpose(1, 2))
    wide = None if bias is None else bias.float().contiguous()  # [N]
    return _Packed(multiply, panels, wide, panels.data_ptr(), 0 if wide is None else wide.data_ptr())


class Linear:
    """A weight matrix [N, K], perhaps with a bias [N], that multiplies rows: x [M, K] -> [M, N] in x.dtype.

    float32 rows on the CPU take a native kernel with float32 sums; bfloat16 and float32 weights are packed for it once, and
    the original tensor is not kept. Every output is then one chain of fused multiply-adds in order of k, whatever M is:
    *a row's result does not depend, in any bit, on the other rows of the batch*. The torch twin, which takes everything
    else, promises no such thing.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self._dtype = weight.dtype
        self._bias = bias
        self._packed = _pack(weight, bias)
        self._weight: Tensor | None = None
        if self._packed is None:
            # Without the kernel a float32 copy is twice the memory, but several times faster than torch's bfloat16.
            slow = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
            self._weight = weight.float() if slow else weight

    @property
    def weight(self) -> Tensor:
        """The weight matrix [N, K]; unpacked at every call where it is packed, so not for the hot path."""
        if self._packed is None:
            assert self._weight is not None
            return self._weight.to(self._dtype)
        panels = self._packed.panels
        count, steps, columns, pair = panels.shape
        return panels.transpose(1, 2).reshape(count * columns, steps * pair)[: self.out_features, : self.in_features]

    def __call__(self, x: Tensor) -> Tensor:
        """x [M, K] -> [M, N]."""
        return self.first(x, self.out_features)

    def first(self, x: Tensor, n_out: int) -> Tensor:
        """The first n_out outputs (a multiple of 16, or all): x [M, K] -> [M, n_out]."""
        packed = self._packed
        if packed is None or x.dtype is not torch.float32:
            weight = self.weight if self._weight is None else self._weight
            return linear_reference(x, weight[:n_out], None if self._bias is None else self._bias[:n_out])
        rows, depth = x.shape
        if depth != self.in_features or n_out > self.out_features:
            raise ValueError(f"{n_out} outputs of {rows} x {depth}: the weight is {self.out_features} x {self.in_features}")
        if not x.is_contiguous():
            x = x.contiguous()
        out = torch.empty(rows, n_out)  # [M, n_out]
        packed.multiply(x.data_ptr(), rows, depth, packed.panels_at, n_out, packed.bias_at, out.data_ptr())
        return out
