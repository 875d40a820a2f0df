"""Root-mean-square normalisation of rows, alone or after adding the residual stream."""

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The plain torch twin of `rms_norm`; works in x.dtype, but at least float32, on any device."""
    wide = x if x.dtype == torch.float64 else x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)  # [M, 1]
    return (wide * scale * weight.to(wide.dtype)).to(x.dtype)


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The plain torch twin of `add_rms_norm`."""
    total = x + residual  # [M, H]
    return rms_norm_reference(total, weight, eps), total


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale every row to unit root mean square, then each column by its weight: x [M, H], weight [H] -> [M, H]."""
    return rms_norm_reference(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add a layer's output to the residual stream and normalise: x, residual [M, H] -> (normed, x + residual)."""
    return add_rms_norm_reference(x, residual, weight, eps)
