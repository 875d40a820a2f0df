"""Which tensors the Triton kernels take. They are imported where they are used: a machine without a GPU need not have Triton."""

import torch
from torch import Tensor

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def on_gpu(x: Tensor) -> bool:
    """Whether a Triton kernel takes this tensor: on a GPU, and of a type whose arithmetic float32 can hold."""
    return x.is_cuda and x.dtype in KERNEL_DTYPES
