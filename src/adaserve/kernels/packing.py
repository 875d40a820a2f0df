"""How weights lie in memory for the native matrix products: panels of C outputs, cut along K.

Every layout is an array [P, T, C, D] or made of such arrays: P panels of C outputs each, T steps of D values along K, zeros where
a matrix ends before its last panel or step. linear.cpp, amx.h, blocks.h, vnni.h and int8_tiles.h read them.
"""

import torch
from torch import Tensor
from torch.nn import functional

from adaserve.kernels.native import empty_huge
from adaserve.kernels.quantized import BLOCK, QuantizedWeight

_LINE = 64
"""Bytes of a cache line, on which the codes of 8 bits begin."""

_LANES = 16
"""Outputs of a panel for integer products."""


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


def pack_fours(weight: QuantizedWeight) -> Tensor:
    """Lay blocks out for integer products, [P, bytes] on huge pages: a panel's scales and offsets, then its codes (vnni.h)."""
    scale = _panels(weight.scale, _LANES, 1)  # [P, T, 16, 1]
    fours = _panels(weight.codes, _LANES, BLOCK).unflatten(3, (8, 4)).transpose(2, 3)  # [P, T, 8, 16, 4]
    count = scale.shape[0]
    if weight.offset is None:
        head, codes = scale.reshape(count, -1), (fours.view(torch.uint8) ^ 128).reshape(count, -1)
        head = functional.pad(head, (0, -head.shape[1] % (_LINE // 2)))
    else:
        head = torch.cat((scale, _panels(weight.offset, _LANES, 1)), 2).reshape(count, -1)
        codes = (fours[:, :, :4] | fours[:, :, 4:] << 4).reshape(count, -1)
    flat = [head.view(torch.uint8), codes]
    packed = empty_huge(count, sum(part.shape[1] for part in flat), dtype=torch.uint8)
    return torch.cat(flat, 1, out=packed)


def unpack_fours(packed: Tensor, outputs: int, depth: int, offsets: bool) -> QuantizedWeight:
    """The blocks that were packed for integer products."""
    count, steps = packed.shape[0], depth // BLOCK
    size = steps * _LANES * BLOCK // (2 if offsets else 1)  # bytes of codes
    head, codes = packed[:, :-size].contiguous().view(torch.float16), packed[:, -size:]

    def matrix(part: Tensor, width: int) -> Tensor:
        return unpack(part.reshape(count, steps, _LANES, -1), outputs, width)

    if not offsets:
        fours = (codes ^ 128).view(torch.int8).unflatten(1, (steps, 8, _LANES, 4))
        scale = head[:, : steps * _LANES]
        return QuantizedWeight(matrix(fours.transpose(2, 3), depth), matrix(scale, steps), None)
    both = codes.unflatten(1, (steps, 4, _LANES, 4))
    fours = torch.cat((both & 15, both >> 4), 2)  # [P, T, 8, 16, 4]
    scale, offset = head.unflatten(1, (steps, 2, _LANES)).unbind(2)  # [P, T, 16] each
    return QuantizedWeight(matrix(fours.transpose(2, 3), depth), matrix(scale, steps), matrix(offset, steps))


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
