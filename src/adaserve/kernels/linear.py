"""Matrix products with a model's weights: y = x W^T + b."""

import torch
from torch import Tensor
from torch.nn import functional

from adaserve.kernels import native


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The plain torch twin of `Linear`: x [M, K], weight [N, K], bias [N] -> [M, N] in x.dtype."""
    return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _pack(weight: Tensor, columns: int, advise: native.Function) -> Tensor:
    """Panels of `columns` outputs, padded with zeros (linear.cpp draws them): [N, K] -> [P, K (/ 2), columns (, 2)]."""
    outputs, depth = weight.shape
    pair = 2 if weight.dtype == torch.bfloat16 else 1
    panels, steps = -(-outputs // columns), -(-depth // pair)
    packed = torch.empty(panels, steps, columns, pair, dtype=weight.dtype)
    advise(packed.data_ptr(), packed.nbytes)
    whole, odd = outputs // columns, depth % pair
    if whole and not odd:
        packed[:whole].copy_(weight[: whole * columns].view(whole, columns, steps, pair).permute(0, 2, 1, 3))
    if odd:
        whole = 0
    if whole < panels:
        rest = functional.pad(weight[whole * columns :], (0, steps * pair - depth, 0, panels * columns - outputs))
        packed[whole:].copy_(rest.view(panels - whole, columns, steps, pair).permute(0, 2, 1, 3))
    return packed


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
        self._packed: Tensor | None = None
        self._weight: Tensor | None = weight
        self._multiply = None
        if weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float32):
            symbol = "linear_bf16" if weight.dtype == torch.bfloat16 else "linear_float"
            self._multiply = native.function("linear", symbol, "piipipp")
            advise = native.function("linear", "advise_huge", "pi")
            if self._multiply is not None and advise is not None:
                columns = native.library("linear").panel_outputs()
                self._packed = _pack(weight, columns, advise)
                self._packed_pointer = self._packed.data_ptr()
                self._float_bias = None if bias is None else bias.float().contiguous()
                self._bias_pointer = 0 if self._float_bias is None else self._float_bias.data_ptr()
                self._weight = None
            elif weight.dtype == torch.bfloat16:
                # Without the kernel a float32 copy is twice the memory, but several times faster than torch's bfloat16.
                self._weight = weight.float()

    @property
    def weight(self) -> Tensor:
        """The weight matrix [N, K]; unpacked at every call, so not for the hot path."""
        if self._weight is not None:
            return self._weight.to(self._dtype)
        flat = self._packed.permute(0, 2, 1, 3).reshape(-1, self._packed.shape[1] * self._packed.shape[3])
        return flat[: self.out_features, : self.in_features]

    def __call__(self, x: Tensor) -> Tensor:
        """x [M, K] -> [M, N]."""
        return self.first(x, self.out_features)

    def first(self, x: Tensor, n_out: int) -> Tensor:
        """The first n_out outputs (a multiple of 16): x [M, K] -> [M, n_out]."""
        if self._packed is None or x.dtype is not torch.float32:
            weight = self._weight if self._weight is not None else self.weight
            return linear_reference(x, weight[:n_out], None if self._bias is None else self._bias[:n_out])
        rows, depth = x.shape
        if depth != self.in_features or n_out > self.out_features:
            raise ValueError(f"{rows} x {depth} does not fit a weight of {self.out_features} x {self.in_features}, {n_out} outputs")
        if not x.is_contiguous():
            x = x.contiguous()
        out = torch.empty(rows, n_out)  # [M, n_out]
        self._multiply(x.data_ptr(), rows, depth, self._packed_pointer, n_out, self._bias_pointer, out.data_ptr())
        return out
