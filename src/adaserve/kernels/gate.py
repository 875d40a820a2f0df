"""The gated activation of a SwiGLU feed-forward block."""

from torch import Tensor
from torch.nn import functional


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    """The plain torch twin of `silu_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, for rows that hold the gate's columns first: [M, 2I] -> [M, I]."""
    return silu_mul_reference(gate_up)
