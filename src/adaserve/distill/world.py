"""The devices that train together, each in a process of its own; started by torchrun, or a single one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class TrainingWorld:
    """rank of this process among `size` of them. Only the first writes files and speaks."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def join(device: torch.device) -> "TrainingWorld":
        """Join the processes that torchrun started; a process that nobody started so is alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return TrainingWorld()
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return TrainingWorld(distributed.get_rank(), size)

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def sum_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums of some tensors over all processes, sent as one."""
        if self.size == 1:
            return list(tensors)
        whole = self.sum(torch.cat([tensor.flatten() for tensor in tensors]))
        pieces = whole.split([tensor.numel() for tensor in tensors])
        return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]

    def agree(self, value: float) -> float:
        """The first process's number: clocks differ, and the processes must end at the same step."""
        if self.size == 1:
            return value
        shared = torch.tensor([value if self.is_first else 0.0], dtype=torch.float64)
        if distributed.get_backend() == "nccl":
            shared = shared.cuda()
        return float(self.sum(shared))

    def leave(self) -> None:
        """Part from the others."""
        if self.size > 1:
            distributed.destroy_process_group()
