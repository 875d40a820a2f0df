"""How GPUs of one machine come to reach each other's memory: each shares a piece of its own with all others (CUDA's IPC)."""

import time
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from adaserve.kernels.peers import Peers, sum_norm

T = TypeVar("T")

SENT_ROWS = 1024
"""About so many rows a rank sends for a sum at most, to all others together: for more of them NCCL's rings are better."""
PATIENCE = 60.0
"""Seconds in which a first sum must have come about; one of the ranks may have to compile its kernel."""
PAUSE = 0.001
"""Seconds between two looks whether it has."""
ROW_BYTES = 32 * 1024
"""The most bytes of a row: 16,384 numbers of bfloat16."""


def connect_peers(group: dist.ProcessGroup) -> Peers | None:
    """Share memory with the other ranks, which call this too; None where any two of them cannot. Takes 64 MB of each GPU.

    Rank r has the r-th GPU.
    """
    rank, size = group.rank(), group.size()
    device = torch.device("cuda", rank)
    if size == 1 or not all(torch.cuda.can_device_access_peer(a, b) for a in range(size) for b in range(size) if a != b):
        return None
    rows = SENT_ROWS // size
    flag_bytes, inbox_bytes = Peers.memory(size, rows, ROW_BYTES)
    own, handle = _shared(flag_bytes + inbox_bytes, device)
    shared = _everybodys(handle, group)
    opened = [own if r == rank else _opened(shared[r], device) for r in range(size)]
    reached = [s for s in opened if s is not None]
    if not all(_everybodys(len(reached) == size, group)):
        return None
    torch.cuda.synchronize(device)
    _everybodys(None, group)  # all have zeroed their flags
    flags = torch.tensor([s.data_ptr() for s in reached], dtype=torch.int64, device=device)  # [size]
    sums, given_up = (torch.zeros(n, dtype=torch.int64, device=device) for n in (rows, 1))
    letter = Peers.letter_to(device)
    peers = Peers(rank, size, rows, ROW_BYTES, flags + flag_bytes, flags, sums, given_up, tuple(reached), letter)
    return peers if all(_everybodys(_works(peers), group)) else None


def _works(peers: Peers) -> bool:
    """Whether a sum comes about: GPUs may reach each other in ways that carry no flags."""
    device = peers.flags.device
    row, nothing, weight = (
        torch.full(shape, x, device=device) for shape, x in (((1, 8), peers.rank + 1.0), ((1, 8), 0.0), ((8,), 1.0))
    )
    try:
        _, total = sum_norm(row, nothing, weight, 1e-5, peers)
        done = torch.cuda.Event()
        done.record()
        for _ in range(round(PATIENCE / PAUSE)):
            if done.query():
                break
            time.sleep(PAUSE)
        else:
            peers.give_up()
        return total[0].tolist() == [peers.size * (peers.size + 1) / 2] * 8
    except RuntimeError:
        return False


def _shared(size: int, device: torch.device) -> tuple[torch.UntypedStorage | None, tuple[Any, ...] | None]:
    """Memory of zeros, and what another process needs to reach it; None where there is none, or it cannot be shared."""
    try:
        own = torch.zeros(size, dtype=torch.uint8, device=device).untyped_storage()
        return own, tuple(own._share_cuda_())
    except RuntimeError:
        return None, None


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
