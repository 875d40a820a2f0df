"""Causal forward batches for tests: groups of known tokens over contiguous pages."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from adaserve.runtime.batch import ForwardBatch


def page_table(slots: int, pages_per_slot: int) -> Tensor:
    """Slot s owns pages [s * pages_per_slot, (s + 1) * pages_per_slot).  # [slots, P]"""
    return torch.arange(slots * pages_per_slot).view(slots, pages_per_slot)


def causal_batch(
    groups: Sequence[tuple[int, Sequence[int], int]], *, slots: int, pages_per_slot: int, page_size: int
) -> ForwardBatch:
    """Rows for groups of (slot, tokens, start): known tokens at positions start, start + 1, ... of a slot.

    Each row sees the positions up to its own. The pool must have slots * pages_per_slot pages of page_size tokens.
    """
    token = torch.tensor([t for _, tokens, _ in groups for t in tokens])  # [B]
    position = torch.tensor([start + i for _, tokens, start in groups for i in range(len(tokens))])  # [B]
    owner = torch.tensor([slot for slot, tokens, _ in groups for _ in tokens])  # [B]
    pages = page_table(slots, pages_per_slot)
    return ForwardBatch(
        token=token,
        position=position,
        prefix=position + 1,
        mask=torch.zeros_like(position),
        dest=pages[owner, position // page_size] * page_size + position % page_size,
        start=torch.tensor([0, *accumulate(len(tokens) for _, tokens, _ in groups)]),
        slot=torch.tensor([slot for slot, _, _ in groups]),
        pages=pages,
        page_size=page_size,
        tail_start=slots * pages_per_slot * page_size,
    )
