"""Where an engine computes, in which type, and with how many threads."""

import os
from importlib.util import find_spec

import torch

from adaserve.config import EngineConfig
from adaserve.errors import InvalidConfig
from adaserve.kernels.native import use_threads

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
"""Types of weights by name. `auto` is none of them: see `dtype_of`."""


def device_of(config: EngineConfig) -> torch.device:
    """The device that a config means here. Raises InvalidConfig when it is not there or cannot be used."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("no CUDA device was found: use --device cpu")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if find_spec("triton") is None:
        raise InvalidConfig("the GPU's kernels need Triton: pip install triton, or use --device cpu")
    return torch.device("cuda")


def dtype_of(config: EngineConfig) -> torch.dtype:
    """The type of the weights that a config means."""
    return DTYPES["bfloat16" if config.dtype == "auto" else config.dtype]


def threads_of(config: EngineConfig) -> int:
    """CPU threads that a config means, over all ranks. Raises InvalidConfig for more than there are cores.

    The kernels' threads wait for one another without sleeping: with two threads on a core a step takes a hundred times as long.
    """
    cores = os.cpu_count() or 1
    if config.threads is not None and config.threads > cores:
        raise InvalidConfig(
            f"--threads {config.threads} is more than this machine's {cores} cores: leave the option out for all of them"
        )
    return config.threads or cores


def compute_with(threads: int, dtype: torch.dtype) -> None:
    """Set how many CPU threads this process computes with, for weights of this dtype."""
    if dtype == torch.float64:
        torch.set_num_threads(threads)  # float64 has no native kernels
    else:
        use_threads(threads)
