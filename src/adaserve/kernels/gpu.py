"""Which tensors the Triton kernels take. They are imported where they are used: a machine without a GPU need not have Triton."""

from functools import cache

import torch
from torch import Tensor

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def on_gpu(x: Tensor) -> bool:
    """Whether a Triton kernel takes this tensor: on a GPU, and of a type whose arithmetic float32 can hold."""
    return x.is_cuda and x.dtype in KERNEL_DTYPES


def starts_early(x: Tensor) -> bool:
    """Whether kernels on this tensor's device may start while the one before them still runs, and wait for it themselves.

    Of Hopper on ("programmatic dependent launch" in CUDA's guide): what does not depend on that kernel is read meanwhile.
    """
    return x.is_cuda and _capability(x.device) >= (9, 0)


def choose_library() -> None:
    """Have torch make its products by cuBLASLt, which divides those of 64 to 512 rows better than cuBLAS does (docs/log.md).

    It holds for the whole process, as torch has it.
    """
    torch.backends.cuda.preferred_blas_library("cublaslt")


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
