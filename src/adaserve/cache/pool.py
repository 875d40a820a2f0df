"""The KV pool of one model: a flat store of key and value rows, pages first, then the slots' scratch tails (runtime/batch.py)."""

import torch
from torch import Tensor

from adaserve.kernels.move import move_rows
from adaserve.kernels.native import empty_huge
from adaserve.runtime.batch import TAIL_ROWS


class KVPool:
    """Keys and values of one model for all its layers.

    keys, values  [layers, R, KH, hd]: R = pages * page_size + slots * TAIL_ROWS pool rows of KH key-value heads.
    """

    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        head_dim: int,
        pages: int,
        page_size: int,
        slots: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.page_size = page_size
        self.tail_start = pages * page_size
        rows = self.tail_start + slots * TAIL_ROWS
        shape = (layers, rows, heads, head_dim)
        if torch.device(device).type == "cpu":
            # Cleared for the system to give the memory now. Within a step that takes milliseconds for a huge page, and all layers
            # need their next one at the same token (docs/log.md, 2026-11-28, third session).
            self.keys = empty_huge(*shape, dtype=dtype).zero_()  # [layers, R, KH, hd]
            self.values = empty_huge(*shape, dtype=dtype).zero_()
        else:
            self.keys = torch.empty(shape, dtype=dtype, device=device)  # nobody attends to a row that was not written
            self.values = torch.empty_like(self.keys)

    def move(self, source: Tensor, dest: Tensor) -> None:
        """Copy pool rows `source` [m] to rows `dest` [m], in every layer: an accepted path goes from tail to pages."""
        if source.shape[0] > 0:
            move_rows(self.keys, source, dest)
            move_rows(self.values, source, dest)

    @staticmethod
    def row_bytes(*, layers: int, heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes that one token's keys and values take in all layers."""
        return 2 * layers * heads * head_dim * dtype.itemsize
