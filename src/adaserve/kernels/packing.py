"""How weights lie in memory for the native matrix products: panels of C outputs, cut along K.

Every layout is an array [P, T, C, D] or made of such arrays: P panels of C outputs each, T steps of D values along K, zeros where
a matrix ends before its last panel or step. linear.cpp, amx.h and blocks.h read them.
"""

import torch
from torch import Tensor
from torch.nn import functional

from adaserve.kernels.native import empty_huge
from adaserve.kernels.quantized import BLOCK, QuantizedWeight

_LINE = 64
"""Bytes of a cache line, on which the codes of 8 bits begin."""


def pack(matrix: Tensor, columns: int, deep: int) -> Tensor:
    """Lay [N, K] out as panels [P, T, columns, deep] on huge pages."""
    count, steps = -(-matrix.shape[0] // columns), -(-matrix.shape[1] // deep)
    panels = empty_huge(count, steps, columns, deep, dtype=matrix.dtype)
    _fill(panels, matrix)
    return panels


def unpack(panels: Tensor, outputs: int, depth: int) -> Tensor:
    """The matrix [outputs, depth] that was packed."""
    count, steps, columns, deep = panels.shape
    return panels.transpose(1, 2).reshape(count * columns, steps * deep)[:outputs, :depth]


def pack_blocks(weight: QuantizedWeight, columns: int) -> Tensor:
    """Lay blocks out as [P, T, bytes]: for every step of a panel its scales, its offsets or padding, its codes (blocks.h)."""
    codes, scale = _panels(weight.codes, columns, BLOCK), _panels(weight.scale, columns, 1)
    if weight.offset is None:
        parts = [scale, scale.new_zeros(*scale.shape[:2], -columns % (_LINE // 2), 1), codes]
    else:
        four = codes.unflatten(2, (-1, 4))  # [P, T, C / 4, 4, 32]
        words = torch.stack((four[:, :, :, 0] | four[:, :, :, 1] << 4, four[:, :, :, 2] | four[:, :, :, 3] << 4), -1)
        parts = [scale, _panels(weight.offset, columns, 1), words]  # words [P, T, C / 4, 32, 2]
    flat = [part.flatten(2).view(torch.uint8) for part in parts]
    packed = empty_huge(*codes.shape[:2], sum(part.shape[2] for part in flat), dtype=torch.uint8)
    return torch.cat(flat, 2, out=packed)


def unpack_blocks(packed: Tensor, outputs: int, depth: int, columns: int, offsets: bool) -> QuantizedWeight:
    """The blocks that were packed."""
    count, steps, _ = packed.shape
    half = 2 * columns  # bytes of a step's scales

    def matrix(part: Tensor, dtype: torch.dtype, width: int) -> Tensor:
        return unpack(part.contiguous().view(dtype).view(count, steps, columns, -1), outputs, width)

    scale = matrix(packed[:, :, :half], torch.float16, depth // BLOCK)
    if not offsets:
        return QuantizedWeight(matrix(packed[:, :, -columns * BLOCK :], torch.int8, depth), scale, None)
    offset = matrix(packed[:, :, half : 2 * half], torch.float16, depth // BLOCK)
    words = packed[:, :, 2 * half :].unflatten(2, (columns // 4, BLOCK, 2))
    four = torch.stack(
        (words[..., 0] & 15, words[..., 0] >> 4, words[..., 1] & 15, words[..., 1] >> 4), 3
    )  # [P, T, C / 4, 4, 32]
    return QuantizedWeight(matrix(four.flatten(2), torch.uint8, depth), scale, offset)


def _panels(matrix: Tensor, columns: int, deep: int) -> Tensor:
    """[N, K] as panels [P, T, columns, deep], for an array that is packed further."""
    panels = matrix.new_empty(-(-matrix.shape[0] // columns), -(-matrix.shape[1] // deep), columns, deep)
    _fill(panels, matrix)
    return panels


def _fill(panels: Tensor, matrix: Tensor) -> None:
    count, steps, columns, deep = panels.shape
    outputs, depth = matrix.shape
    whole = outputs // columns if depth % deep == 0 else 0  # panels that need no padding, nor a second copy
    panels[:whole].copy_(matrix[: whole * columns].reshape(whole, columns, steps, deep).transpose(1, 2))
    if whole < count:
        rest = functional.pad(matrix[whole * columns :], (0, steps * deep - depth, 0, count * columns - outputs))
        panels[whole:].copy_(rest.view(count - whole, columns, steps, deep).transpose(1, 2))
