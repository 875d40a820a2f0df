"""World: rank 0's group and its hold on the other ranks, opened before a model is loaded and closed after its last step."""

import weakref
from dataclasses import dataclass

import torch

from adaserve.errors import InvalidConfig
from adaserve.executor.executor import Executor
from adaserve.models.load import read_config
from adaserve.models.registry import ModelSource
from adaserve.parallel.executor import Leader
from adaserve.parallel.group import TorchGroup, check_alone, connect, disconnect
from adaserve.parallel.messages import Here, Load, Loaded, Serve
from adaserve.parallel.ranks import Ranks
from adaserve.parallel.share import Share

TIMEOUT = 300.0
"""Seconds that a rank waits for another one. Compiling kernels at the first steps may take one of them longer than the others."""


@dataclass(frozen=True)
class World:
    """All ranks of an engine, as rank 0 sees them."""

    group: TorchGroup
    ranks: Ranks

    def rooms(self) -> list[int]:
        """Wait until the other ranks have loaded their shares; bytes that are free on the GPUs of those that have one."""
        answers = self.ranks.answers(Loaded)
        return [a.room for a in answers if isinstance(a, Loaded) and a.room is not None]

    def lead(self, executor: Executor, slots: int, length: int, pages: int, page_size: int) -> Executor:
        """Let the other ranks serve with these sizes, and lead them by rank 0's executor."""
        self.ranks.send(Serve(slots, length, pages, page_size))
        leader = Leader(executor, self.group, self.ranks)
        weakref.finalize(leader, _end, executor, self)  # also when the interpreter exits and nobody has closed anything
        return leader

    def close(self) -> None:
        """End the other ranks; harmless when done before."""
        self.ranks.close()
        self.group.leave()


def _end(executor: Executor, world: World) -> None:
    executor.close()  # NCCL's group cannot end before its graphs
    world.close()


def open_world(
    source: ModelSource, *, size: int, dtype: torch.dtype, device: torch.device, threads: int, timeout: float = TIMEOUT
) -> World:
    """Start the other ranks and meet them; they load their shares of the model meanwhile.

    threads: CPU threads of each rank. Raises InvalidConfig for a size that does not divide the model, or has more ranks than the
    machine has GPUs, and EngineFailed when a rank does not come up.
    """
    Share(read_config(source), 0, size)
    check_devices(size, device)
    check_alone()
    ranks = Ranks.start(size - 1)
    try:
        for rank, link in enumerate(ranks.links, start=1):
            link.send(
                Load(
                    rank=rank,
                    size=size,
                    name=source.name,
                    path=str(source.path),
                    format=source.format.value,
                    dtype=str(dtype).removeprefix("torch."),
                    device=device.type,
                    threads=threads,
                    timeout=timeout,
                )
            )
        ranks.answers(Here)  # who has not come this far might never meet the others
        with ranks.watched():  # one that fails while they meet says why
            group = connect(ranks.folder, rank=0, size=size, device=device, timeout=timeout)
    except BaseException:
        ranks.close()
        disconnect()
        raise
    ranks.watch(group.abandon)
    return World(group, ranks)


def check_devices(size: int, device: torch.device) -> None:
    """Raise InvalidConfig when there are more ranks than GPUs to put them on."""
    if device.type != "cuda":
        return
    count = torch.cuda.device_count()
    if size > count:
        raise InvalidConfig(
            f"tensor_parallel_size {size} asks for {size} GPUs and this machine shows {count}: use at most {count}, "
            "or make more visible (CUDA_VISIBLE_DEVICES)"
        )
