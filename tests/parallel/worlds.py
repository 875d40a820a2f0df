"""Worlds of ranks for tests: each rank a thread of this process with a gloo group of its own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from adaserve.parallel.group import TorchGroup

T = TypeVar("T")
TIMEOUT = 30.0


def groups(size: int, timeout: float = TIMEOUT) -> list[TorchGroup]:
    """The groups of all ranks of a new world; each is to be used by one thread."""
    store = dist.HashStore()

    def join(rank: int) -> TorchGroup:
        own = dist.PrefixStore("world", store)
        group = dist.ProcessGroup(own, rank, size)
        options = dist.ProcessGroupGloo._Options()
        options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        options._timeout = timedelta(seconds=timeout)
        gloo = dist.ProcessGroupGloo(own, rank, size, options)
        group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
        return TorchGroup(group)

    return together(size, join)


def together(size: int, run: Callable[[int], T]) -> list[T]:
    """Run a function of the rank on a thread for each rank, and return what they return, by rank."""
    with ThreadPoolExecutor(size) as threads:
        futures = [threads.submit(run, rank) for rank in range(size)]
        return [future.result(timeout=4 * TIMEOUT) for future in futures]
