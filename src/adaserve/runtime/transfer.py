"""Copies between host and device that wait for nothing, but for the one that brings a step's results."""

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(
    values: Sequence[int] | Sequence[float] | Sequence[Sequence[int]] | Sequence[Sequence[float]],
    device: torch.device,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    """A tensor on `device` of the host's numbers; from pinned memory, so that no copy makes the host wait."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def fetch(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same tensors on the host, int64 for whole numbers and bools, float64 for others; waits for the device, once."""
    if not tensors[0].is_cuda:
        return tensors
    whole = [t for t in tensors if not t.is_floating_point()]
    other = [t for t in tensors if t.is_floating_point()]
    packed = [
        torch.cat([t.flatten().to(dtype) for t in part]).to("cpu", non_blocking=True) if part else torch.empty(0, dtype=dtype)
        for part, dtype in ((whole, torch.int64), (other, torch.float64))
    ]
    torch.cuda.current_stream().synchronize()
    flat = [iter(p.split([t.numel() for t in part])) for p, part in zip(packed, (whole, other), strict=True)]
    return tuple(next(flat[t.is_floating_point()]).view(t.shape) for t in tensors)
