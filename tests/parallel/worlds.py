"""Worlds of ranks for tests: each rank a thread of this process with a gloo group of its own."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from socket import SHUT_RDWR, socketpair
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from adaserve.assembly import Models, Sizes, assemble_engine, make_executor
from adaserve.clock import WallClock
from adaserve.engine import Engine
from adaserve.models.config import ModelConfig
from adaserve.models.decoder import Decoder
from adaserve.models.weights import assemble
from adaserve.parallel.executor import Leader, follow
from adaserve.parallel.group import TorchGroup
from adaserve.parallel.messages import Link
from adaserve.parallel.ranks import Ranks
from adaserve.policy.library import make_policy
from tests.engines import PROFILE, Setting

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


@contextmanager
def shared_engine(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    draft: Decoder | None,
    setting: Setting,
    size: int,
    timeout: float = TIMEOUT,
) -> Iterator[Engine]:
    """An engine whose target several ranks share: rank 0 is the engine's, the others follow on threads.

    timeout: seconds that a rank waits for another one in a collective.
    """
    world = groups(size, timeout)
    sizes = Sizes(setting.slots, 200, setting.pages, setting.page_size)
    ends = [socketpair() for _ in range(size - 1)]

    def models(rank: int) -> Models:
        target = assemble(config, weights, "target", dtype=torch.float64, group=world[rank])
        looks_up, recalls = (rank == 0 and word in setting.draft for word in ("ngram", "by tenant"))
        return Models(target, draft if rank == 0 else None, lookup=looks_up, recalls=recalls)

    def other(rank: int) -> None:
        executor = make_executor(models(rank), sizes, WallClock(), padded=setting.padded or None)
        follow(executor, world[rank], Link(ends[rank - 1][1]), torch.device("cpu"))

    ranks = Ranks(tuple(Link(ours) for ours, _ in ends), (), Path("nowhere"), threading.Event())
    with ThreadPoolExecutor(size) as threads:
        futures = [threads.submit(other, rank) for rank in range(1, size)]
        try:
            own = models(0)
            inner = make_executor(own, sizes, WallClock(), padded=setting.padded or None)
            policy = make_policy(setting.policy, setting.constants, setting.overrides)
            leader = Leader(inner, world[0], ranks)
            yield assemble_engine(
                own, sizes, policy, PROFILE, clock=WallClock(), executor=leader, prefix_caching=setting.prefix_caching
            )
        finally:
            ranks.close()
            for _, theirs in ends:
                theirs.shutdown(SHUT_RDWR)
        for future in futures:
            future.result(timeout=TIMEOUT)  # raises what went wrong on that rank
