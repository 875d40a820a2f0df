"""How GPUs of one machine come to reach each other's memory: each shares a piece of its own with all others (CUDA's IPC)."""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from adaserve.kernels.peers import Peers

T = TypeVar("T")

MOST_ROWS = 1024
"""Divided by the ranks: the most rows of a sum. Each rank sends its rows to all others, so NCCL's rings are better for more."""
ROW_BYTES = 32 * 1024
"""The most bytes of a row: 16,384 numbers of bfloat16."""


def connect_peers(group: dist.ProcessGroup) -> Peers | None:
    """Share memory with the other ranks, which call this too; None where any two of them cannot. Takes 64 MB of each GPU.

    Rank r has the r-th GPU.
    """
    rank, size = group.rank(), group.size()
    device = torch.device("cuda", rank)
    if not all(torch.cuda.can_device_access_peer(a, b) for a in range(size) for b in range(size) if a != b):
        return None
    rows = MOST_ROWS // size
    flag_bytes, inbox_bytes = Peers.memory(size, rows, ROW_BYTES)
    own = torch.zeros(flag_bytes + inbox_bytes, dtype=torch.uint8, device=device)
    shared = _everybodys(_shared(own), group)
    opened = [own.untyped_storage() if r == rank else _opened(shared[r], device) for r in range(size)]
    reached = [s for s in opened if s is not None]
    if not all(_everybodys(len(reached) == size, group)):
        return None
    torch.cuda.synchronize(device)
    _everybodys(None, group)  # all have zeroed their flags
    flags = torch.tensor([s.data_ptr() for s in reached], dtype=torch.int64, device=device)  # [size]
    sums, given_up = (torch.zeros(n, dtype=torch.int64, device=device) for n in (rows, 1))
    return Peers(rank, size, rows, ROW_BYTES, flags + flag_bytes, flags, sums, given_up, (own, *reached))


def _shared(own: Tensor) -> tuple[Any, ...] | None:
    """What another process needs to reach this memory; None where the driver or the allocator does not share."""
    try:
        return tuple(own.untyped_storage()._share_cuda_())
    except RuntimeError:
        return None


def _opened(shared: tuple[Any, ...] | None, device: torch.device) -> torch.UntypedStorage | None:
    """Another rank's memory, as this rank's own GPU sees it."""
    try:
        return None if shared is None else torch.UntypedStorage._new_shared_cuda(device.index, *shared[1:])
    except RuntimeError:
        return None


def _everybodys(what: T, group: dist.ProcessGroup) -> list[T]:
    """What every rank has, by rank."""
    found = [what] * group.size()
    dist.all_gather_object(found, what, group)
    return found
