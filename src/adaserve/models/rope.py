"""Rotary embedding: how the angle of each dimension grows with the position, and the scalings that stretch a context.

Angles are computed in float64 and only the finished cosines and sines are rounded: at position 100,000 a float32 product is off
by some thousandths of a radian, which is more than the rounding of everything that follows.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adaserve.kernels.rotary import RotaryTable

_CHUNK = 8192


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's scaling: long wavelengths divided by `factor`, short ones kept, a linear blend between.

    original: context of the pre-training, in tokens. A wavelength above original / low_freq_factor is long, one below
    original / high_freq_factor is short.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original: int


@dataclass(frozen=True)
class FrequencyFactors:
    """A divisor for each frequency, as GGUF files store them: hd / 2 numbers."""

    factors: tuple[float, ...]


@dataclass(frozen=True)
class Rope:
    """The base of the frequencies, and the scaling applied to them or None."""

    theta: float = 10000.0
    scaling: LinearScaling | Llama3Scaling | FrequencyFactors | None = None

    def frequencies(self, head_dim: int) -> Tensor:
        """Radians that each pair of dimensions turns per position.  # [hd / 2] float64"""
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim  # [hd / 2]
        plain = self.theta**-exponent  # [hd / 2]
        match self.scaling:
            case None:
                return plain
            case LinearScaling(factor):
                return plain / factor
            case FrequencyFactors(factors):
                return plain / torch.tensor(factors, dtype=torch.float64)
            case Llama3Scaling() as scaling:
                turns = scaling.original * plain / (2 * math.pi)  # turns within the original context  # [hd / 2]
                span = scaling.high_freq_factor - scaling.low_freq_factor
                keep = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)  # 1: short wavelength, 0: long  # [hd / 2]
                return plain * (keep + (1 - keep) / scaling.factor)

    def table(self, *, head_dim: int, positions: int, dtype: torch.dtype, device: torch.device | str) -> RotaryTable:
        """Cosines and sines of all positions below `positions`, each [positions, hd / 2] of `dtype` on `device`."""
        frequencies = self.frequencies(head_dim)
        cos = torch.empty(positions, head_dim // 2, dtype=dtype)  # [L, hd / 2]
        sin = torch.empty_like(cos)  # [L, hd / 2]
        for start in range(0, positions, _CHUNK):  # the float64 angles of a long context need not exist all at once
            stop = min(start + _CHUNK, positions)
            angle = torch.arange(start, stop, dtype=torch.float64)[:, None] * frequencies  # [<= 8192, hd / 2]
            cos[start:stop] = angle.cos()
            sin[start:stop] = angle.sin()
        return RotaryTable(cos.to(device), sin.to(device))
