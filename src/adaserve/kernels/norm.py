"""Root-mean-square normalisation of rows, alone, after adding the residual stream, or as they come from the embedding."""

import torch
from torch import Tensor

from adaserve.kernels import native
from adaserve.kernels.gpu import on_gpu
from adaserve.kernels.native import fits


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The plain torch twin of `rms_norm`; works in x.dtype, but at least float32, on any device."""
    wide = x if x.dtype == torch.float64 else x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)  # [M, 1]
    return (wide * scale * weight.to(wide.dtype)).to(x.dtype)


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The plain torch twin of `add_rms_norm`."""
    total = x + residual  # [M, H]
    return rms_norm_reference(total, weight, eps), total


def embed_rms_norm_reference(
    token: Tensor, embedding: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The plain torch twin of `embed_rms_norm`."""
    rows = embedding[token].to(dtype)  # [M, H]
    return rms_norm_reference(rows, weight, eps), rows


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale every row to unit root mean square, then each column by its weight: x [M, H], weight [H] -> [M, H]."""
    if on_gpu(x):
        from adaserve.kernels import triton_rows

        return triton_rows.rms_norm(x, weight, eps)
    run = native.function("rows", "rms_norm", "ppiidp") if fits(x, weight) else None
    if run is None:
        return rms_norm_reference(x, weight, eps)
    rows, width = x.shape
    out = torch.empty_like(x)  # [M, H]
    run(x.data_ptr(), weight.data_ptr(), rows, width, eps, out.data_ptr())
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add a layer's output to the residual stream and normalise: x, residual [M, H] -> (normed, x + residual)."""
    if on_gpu(x):
        from adaserve.kernels import triton_rows

        return triton_rows.add_rms_norm(x, residual, weight, eps)
    run = native.function("rows", "add_rms_norm", "pppiidpp") if fits(x, residual, weight) else None
    if run is None:
        return add_rms_norm_reference(x, residual, weight, eps)
    rows, width = x.shape
    out, total = torch.empty_like(x), torch.empty_like(x)  # [M, H]
    run(x.data_ptr(), residual.data_ptr(), weight.data_ptr(), rows, width, eps, out.data_ptr(), total.data_ptr())
    return out, total


def embed_rms_norm(token: Tensor, embedding: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Look up tokens and normalise: token [M] int64, embedding [V, H], weight [H] -> (normed, looked up), [M, H] of dtype."""
    if on_gpu(embedding):
        from adaserve.kernels import triton_rows

        return triton_rows.embed_rms_norm(token, embedding, weight, eps, dtype)
    rows = embedding[token].to(dtype)  # [M, H]
    return rms_norm(rows, weight, eps), rows
