"""Matrices of a GGUF file as the blocks that the file holds, for kernels that multiply by blocks.

A block is 32 weights along a row: float16 numbers, then codes; of two codes in a byte the low one comes 16 places earlier.

    Q4_0   scale, 16 bytes           weight = (code - 8) * scale
    Q4_1   scale, offset, 16 bytes   weight = code * scale + offset
    Q8_0   scale, 32 bytes           weight = signed code * scale
"""

import numpy as np
import torch
from torch import Tensor

from adaserve.kernels.quantized import BLOCK, QuantizedWeight
from adaserve.models.gguf_header import TensorInfo

_Q4_0, _Q4_1, _Q8_0 = 2, 3, 8
"""GGML's numbers of the types."""
_HALVES = {_Q4_0: 1, _Q4_1: 2, _Q8_0: 1}
"""float16 numbers before the codes."""


def read_blocks(data: np.ndarray, info: TensorInfo) -> QuantizedWeight | None:
    """A matrix [N, K] of a file's bytes, copied; None for tensors of other types or shapes."""
    halves = _HALVES.get(info.kind)
    if halves is None or len(info.shape) != 2 or info.shape[1] % BLOCK:
        return None
    outputs, depth = info.shape
    block = 2 * halves + (BLOCK if info.kind == _Q8_0 else BLOCK // 2)  # bytes
    raw = data[info.offset : info.offset + info.size].reshape(outputs, depth // BLOCK, block)
    number = _tensor(raw[..., : 2 * halves]).view(torch.float16)  # [N, K / 32, 1 or 2]
    codes = _tensor(raw[..., 2 * halves :])  # [N, K / 32, 16 or 32]
    scale = number[..., 0].contiguous()
    if info.kind == _Q8_0:
        return QuantizedWeight(codes.view(torch.int8).view(outputs, depth), scale, None)
    wide = torch.cat((codes & 15, codes >> 4), 2).view(outputs, depth)
    # Eight times a float16 number is one, unless it overflows, which makes logits infinite and is told there.
    return QuantizedWeight(wide, scale, scale * -8 if info.kind == _Q4_0 else number[..., 1].contiguous())


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).copy())
