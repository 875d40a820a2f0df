"""Where rows of known tokens stand, as one Triton kernel: a dozen operations on a few hundred numbers, each of them a launch.

The twin is places.known_rows_reference, the specification.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaserve.runtime.transfer import upload

_BLOCK = 64
"""Rows of a program."""


@triton.jit(do_not_specialize=["count", "total", "length", "page_count", "page_size"])
def _known_rows_kernel(chunks, tokens, pages, rows, count, total, length, page_count, page_size, BLOCK: tl.constexpr):
    chunk = tl.program_id(0)
    first = tl.load(chunks + chunk)
    begin, end = tl.load(chunks + count + chunk), tl.load(chunks + count + chunk + 1)
    slot = tl.load(chunks + 2 * count + 1 + chunk)
    row = begin + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = row < end
    position = first + row - begin
    token = tl.load(tokens + slot * length + position, mask=live, other=0)
    page = tl.load(pages + slot * page_count + position // page_size, mask=live, other=0)
    tl.store(rows + row, token, mask=live)
    tl.store(rows + total + row, position, mask=live)
    tl.store(rows + 2 * total + row, position + 1, mask=live)
    tl.store(rows + 3 * total + row, position * 0, mask=live)
    tl.store(rows + 4 * total + row, page * page_size + position % page_size, mask=live)


def known_rows(
    tokens: Tensor, pages: Tensor, page_size: int, slots: Sequence[int], starts: Sequence[int], lengths: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments and result as of places.known_rows."""
    count, total = len(slots), sum(lengths)
    ends = list(accumulate(lengths, initial=0))
    chunks = upload([*starts, *ends, *slots], tokens.device)  # one copy for all
    rows = torch.empty(5, total, dtype=torch.int64, device=tokens.device)  # [5, m]
    if total:
        _known_rows_kernel[(count, triton.cdiv(max(lengths), _BLOCK))](
            chunks, tokens, pages, rows, count, total, tokens.shape[1], pages.shape[1], page_size, _BLOCK
        )
    return rows, chunks[count : 2 * count + 1], chunks[2 * count + 1 :]
