"""Weights in blocks of 32 with a scale each, as GGUF files store them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

BLOCK = 32
"""Consecutive weights of a row that share a scale."""


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight matrix [N, K] in blocks along K: weight = code * scale + offset, in float32.

    codes   [N, K]: uint8 below 16 where there are offsets (GGUF's Q4_1 and Q4_0), int8 where not (Q8_0)
    scale   [N, K / 32] float16
    offset  [N, K / 32] float16, or None for 0
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor | None

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def dequantize(self) -> Tensor:
        """The matrix [N, K] in float32."""
        blocks = self.codes.float().unflatten(1, (-1, BLOCK))  # [N, K / 32, 32]
        blocks *= self.scale.float()[..., None]
        if self.offset is not None:
            blocks += self.offset.float()[..., None]
        return blocks.flatten(1)

    def over_rows(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with `change`, which maps [N, ...] to [M, ...] by moving whole rows, done to all parts."""
        offset = None if self.offset is None else change(self.offset)
        return type(self)(change(self.codes), change(self.scale), offset)


def stack(parts: list[QuantizedWeight]) -> QuantizedWeight | None:
    """The rows of several matrices below one another, or None where their codes differ in kind."""
    offsets = [part.offset for part in parts if part.offset is not None]
    if 0 < len(offsets) < len(parts):
        return None
    codes, scale = torch.cat([part.codes for part in parts]), torch.cat([part.scale for part in parts])
    return QuantizedWeight(codes, scale, torch.cat(offsets) if offsets else None)
