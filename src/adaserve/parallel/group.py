"""Group: the ranks that share a model, and what they tell each other in the middle of a pass.

    sum_norm   after a row-parallel product: every rank has a summand of the same rows; and what follows there
    join       after the head: every rank has the scores of its own tokens
    broadcast  before verification: rank 0 alone has speculated

A model that is not shared has a group of one, in which these do nothing: there is one decoder and one executor, not two.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from adaserve.errors import EngineFailed, InvalidConfig
from adaserve.kernels.norm import add_rms_norm
from adaserve.kernels.peers import Peers, prepare, sum_norm
from adaserve.parallel.peers import connect_peers

PATIENCE = 10.0
"""Seconds in which a group ends that can."""
STORE_PATIENCE = 1.0
"""Seconds for which a group that has met looks for the file in which it met."""


class Group(Protocol):
    """Ranks 0 to size - 1, of which this process is one. All ranks make the same calls in the same order."""

    @property
    def rank(self) -> int:
        """This rank."""
        ...

    @property
    def size(self) -> int:
        """How many ranks there are."""
        ...

    def sum_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The sum of all ranks' `x` is added to the residual stream and normalised, bit by bit the same on every rank.

        x, residual [M, H], contiguous, weight [H] -> (normed, sum + residual). x may be written to.
        """
        ...

    def prepare(self, weight: Tensor, dtype: torch.dtype, eps: float) -> None:
        """Have what `sum_norm` runs compiled for rows of `dtype`; waits for no other rank."""
        ...

    def join(self, x: Tensor) -> Tensor:
        """The columns of all ranks, in order: [R, C] of each -> [R, size * C] on every rank."""
        ...

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's `x`, written to every other rank's, which has the same shape."""
        ...


@dataclass(frozen=True)
class Alone:
    """A group of one."""

    rank: int = 0
    size: int = 1

    def sum_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Add to the residual stream and normalise."""
        return add_rms_norm(x, residual, weight, eps)

    def prepare(self, weight: Tensor, dtype: torch.dtype, eps: float) -> None:
        """The norm alone."""
        row = torch.zeros(1, len(weight), dtype=dtype, device=weight.device)  # [1, H]
        add_rms_norm(row, row, weight, eps)

    def join(self, x: Tensor) -> Tensor:
        """Nothing to join."""
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """Nobody to tell."""
        return x


ALONE = Alone()
"""What most models are."""


class TorchGroup:
    """A group over torch.distributed: NCCL between GPUs, gloo between CPUs.

    On a GPU the collectives are enqueued on the current stream like any kernel, so passes with them may be captured.
    Methods raise EngineFailed when a rank has gone or does not answer in time. On a GPU calls only enqueue, so of a rank that
    hangs without dying nothing is told.

    peers: GPUs' memory in which sums of few rows are made by a kernel of ours; without, NCCL makes them.
    """

    def __init__(self, group: dist.ProcessGroup, peers: Peers | None = None) -> None:
        self._group = group
        self._peers = peers
        self.rank = group.rank()
        self.size = group.size()

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x: all-reduce in place on a GPU; on a CPU the summands are added in the order of ranks.

        An all-reduce adds in an order that depends on where in the tensor a number stands. Then a row would depend on the
        other rows of the batch, which it does not elsewhere on a CPU; where rows are rounded to 8 bits next, tokens would differ.
        """
        if not x.is_cuda:
            first, *others = self._parts(x)
            for other in others:
                first += other
            return first
        with _told():
            dist.all_reduce(x, group=self._group)
        return x

    def sum_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """In one kernel where GPUs reach each other's memory and the rows have room there."""
        if self._peers is not None and self._peers.take(x):
            return sum_norm(x, residual, weight, eps, self._peers)
        return add_rms_norm(self.sum(x), residual, weight, eps)

    def in_one_kernel(self, x: Tensor) -> bool:
        """Whether `sum_norm` of such rows is one kernel."""
        return self._peers is not None and self._peers.take(x)

    def prepare(self, weight: Tensor, dtype: torch.dtype, eps: float) -> None:
        """The kernel, or the norm alone."""
        ALONE.prepare(weight, dtype, eps)
        if self._peers is not None:
            prepare(weight, dtype, eps, self._peers)

    def join(self, x: Tensor) -> Tensor:
        """All-gather."""
        return torch.cat(self._parts(x), 1)

    def _parts(self, x: Tensor) -> list[Tensor]:
        """What every rank has, by rank."""
        parts = [torch.empty_like(x) for _ in range(self.size)]
        with _told():
            dist.all_gather(parts, x.contiguous(), group=self._group)
        return parts

    def abandon(self) -> None:
        """End the passes of this process's GPU that wait for a rank that has died; the group is of no use any more."""
        peers = self._peers  # which another thread may let go of
        try:
            if peers is not None:
                peers.give_up()
        finally:
            _abort()

    def let_go(self) -> None:
        """Of other ranks' memory, and of what they have of this one's; after the last pass. Harmless when done before."""
        self._peers = None

    def leave(self) -> None:
        """Leave it; harmless when done before, also where this process is in another group by now."""
        self.let_go()
        if dist.is_initialized() and dist.group.WORLD is self._group:
            disconnect()

    def broadcast(self, x: Tensor) -> Tensor:
        """Broadcast in place."""
        with _told():
            dist.broadcast(x, group=self._group, group_src=0)
        return x


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise EngineFailed(
            f"the ranks of the tensor-parallel engine lost each other: {' '.join(str(error).split())[:200]}"
        ) from error


def check_alone() -> None:
    """Raise InvalidConfig in a process that is in a group already: torch.distributed has one world."""
    if dist.is_initialized():
        raise InvalidConfig("this process runs a tensor-parallel engine already; close that one first, or use another process")


def connect(folder: Path, *, rank: int, size: int, device: torch.device, timeout: float) -> TorchGroup:
    """Meet the other ranks of this machine; returns once all have come.

    folder: private to these ranks, the same for all. timeout: seconds to wait for another rank, here and in every collective.
    Raises InvalidConfig in a process that is in a group already.
    """
    check_alone()
    cuda = device.type == "cuda"
    store = dist.FileStore(str(folder / "store"), size)
    with _told():
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
            device_id=torch.device("cuda", rank) if cuda else None,
        )
    # A thread of torch's looks into the store every second, and the group's end waits for it. Where the folder has gone, it would
    # look for as long as ranks wait for each other.
    store.set_timeout(timedelta(seconds=STORE_PATIENCE))
    world = dist.group.WORLD
    assert world is not None, "it was made just now"
    with _told():
        group = TorchGroup(world, connect_peers(world) if cuda else None)
    if cuda:
        _warm_up(group, device)
    return group


def _warm_up(group: TorchGroup, device: torch.device) -> None:
    """Run collectives of all sizes once: NCCL connects channels when a size first needs them, which no graph should capture."""
    for count in (1 << power for power in range(4, 25)):
        group.sum(torch.zeros(count, dtype=torch.bfloat16, device=device))
        group.join(torch.zeros(1, count, device=device))
        group.broadcast(torch.zeros(count, dtype=torch.int64, device=device))
    torch.cuda.synchronize()


def _abort() -> None:
    if dist.is_initialized() and dist.get_backend() == "nccl":
        dist.distributed_c10d._abort_process_group()


def disconnect() -> None:
    """Leave the group that `connect` made, so that this process may be in another; does not wait for other ranks.

    NCCL ends no group while a graph with one of its collectives lives. Executors let go of theirs when they are closed; where
    one was not, because starting failed, this gives up after some seconds, and the group ends with the process.
    """
    leaving = threading.Thread(target=_leave, daemon=True)
    try:
        leaving.start()
    except RuntimeError:  # the interpreter is ending, and starts no more threads
        _leave()
        return
    leaving.join(PATIENCE)


def _leave() -> None:
    _abort()  # to destroy NCCL's properly would wait for the others
    if dist.is_initialized():
        dist.destroy_process_group()
