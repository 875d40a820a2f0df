"""The gated activation of a SwiGLU feed-forward block."""

import torch
from torch import Tensor
from torch.nn import functional

from adaserve.kernels import native
from adaserve.kernels.gpu import on_gpu


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    """The plain torch twin of `silu_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, for rows that hold the gate's columns first: [M, 2I] -> [M, I]."""
    if on_gpu(gate_up):
        from adaserve.kernels import triton_rows

        return triton_rows.silu_mul(gate_up)
    run = native.function("rows", "silu_mul", "piip") if native.fits(gate_up) else None
    if run is None:
        return silu_mul_reference(gate_up)
    rows, width = gate_up.shape
    out = torch.empty(rows, width // 2)  # [M, I]
    run(gate_up.data_ptr(), rows, width // 2, out.data_ptr())
    return out
