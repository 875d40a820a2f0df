"""Copies between host and device that wait for nothing, but for the one that brings a step's results."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(
    values: Sequence[int] | Sequence[float] | Sequence[Sequence[int]] | Sequence[Sequence[float]],
    device: torch.device,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    """A tensor on `device` of the host's numbers; from pinned memory, so that no copy makes the host wait."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def stage(values: Sequence[int] | Sequence[float], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """The host's numbers where a Capture takes them from: in pinned memory for a GPU."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")


@dataclass(frozen=True)
class Bundle:
    """Tensors on their way to the host. packed: on a GPU, all whole numbers and bools in one int64, all others in one float64."""

    tensors: tuple[Tensor, ...]
    packed: tuple[Tensor, ...]


def bundle(*tensors: Tensor) -> Bundle:
    """Put tensors together on the device, so that few copies bring them to the host."""
    if not tensors[0].is_cuda:
        return Bundle(tensors, ())
    parts = [[t for t in tensors if t.is_floating_point() == floating] for floating in (False, True)]
    packed = (
        torch.cat([t.flatten().to(dtype) for t in part]) if part else torch.empty(0, dtype=dtype, device=tensors[0].device)
        for part, dtype in zip(parts, (torch.int64, torch.float64), strict=True)
    )
    return Bundle(tensors, tuple(packed))


class Fetch:
    """A copy of a bundle to the host under way.

    reused: whether the work that is enqueued before `wait` may write to the bundle's memory.
    """

    def __init__(self, bundle: Bundle, *, reused: bool = False) -> None:
        self._bundle = bundle if bundle.packed or not reused else Bundle(tuple(t.clone() for t in bundle.tensors), ())
        self._host = [packed.to("cpu", non_blocking=True) for packed in bundle.packed]
        self._done = torch.cuda.Event() if bundle.packed else None
        if self._done is not None:
            self._done.record()

    def wait(self) -> tuple[NDArray[Any], ...]:
        """The bundle's tensors on the host, int64 or float64 if they were on a GPU; waits until all of them are there."""
        tensors = self._bundle.tensors
        if self._done is None:
            return tuple([t.numpy() for t in tensors])
        self._done.synchronize()
        whole, fractions = (packed.numpy() for packed in self._host)
        at, found = [0, 0], []
        for t in tensors:
            kind, size = t.is_floating_point(), t.numel()
            found.append((fractions if kind else whole)[at[kind] : at[kind] + size].reshape(t.shape))
            at[kind] += size
        return tuple(found)
