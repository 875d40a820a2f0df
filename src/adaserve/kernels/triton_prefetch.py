"""Brings the first part of a weight matrix from memory to a GPU's second-level cache, while small kernels leave memory idle."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_LINE = 128
"""Bytes that one instruction asks for."""
_BLOCK = 1024


@triton.jit
def _prefetch_kernel(matrix, row_bytes, lines, count, LINE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = at // lines
    place = tl.minimum(row, count - 1).to(tl.int64) * row_bytes + (at % lines) * LINE
    address = matrix.to(tl.int64, bitcast=True) + place
    tl.inline_asm_elementwise(
        "{ prefetch.global.L2 [$1]; mov.u32 $0, 0; }", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1
    )


def prefetch(weight: Tensor, size: int) -> None:
    """Ask for the first columns of a matrix [N, K], about `size` bytes in all: products begin with them in every row."""
    rows = weight.shape[0]
    row_bytes = weight.stride(0) * weight.element_size()
    lines = max(1, min(size // rows, row_bytes) // _LINE)
    _prefetch_kernel[(triton.cdiv(rows * lines, _BLOCK),)](weight, row_bytes, lines, rows, _LINE, _BLOCK)


class Prefetcher:
    """Prefetches on a stream of its own, beside the kernels of the current one; for use within graph capture."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def __call__(self, weight: Tensor, size: int) -> None:
        """Ask for the first part of a matrix as soon as what was enqueued so far is done."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            prefetch(weight, size)

    def join(self) -> None:
        """What is enqueued from now on comes after all that was asked for."""
        torch.cuda.current_stream().wait_stream(self._stream)
