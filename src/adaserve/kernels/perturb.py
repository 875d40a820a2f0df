"""Logits plus temperature times keyed noise, all of them: what a coupled draft ranks its candidates by.

The draw itself (gumbel.py) needs only the winner, and in float64. A draft needs the likeliest few and their share of the whole,
and nothing that it does can change a token, so float32 does here: noise is right to about 1e-6 of itself.
"""

import torch
from torch import Tensor

from adaserve.kernels import native
from adaserve.kernels.gpu import on_gpu
from adaserve.runtime.noise import gumbel_at


def perturb_reference(logits: Tensor, temperature: Tensor, key: Tensor) -> Tensor:
    """The plain torch twin of `perturb`."""
    token = torch.arange(logits.shape[1], device=logits.device)  # [V]
    noise = gumbel_at(key.unsqueeze(1), token)  # [R, V]
    return (logits.double() + temperature.double().unsqueeze(1) * noise).to(_result_dtype(logits))


def perturb(logits: Tensor, temperature: Tensor, key: Tensor) -> Tensor:
    """logits[r, v] + temperature[r] * gumbel(key[r], v), a new tensor of float64 for float64, else of float32.

    logits [R, V] floating; temperature [R] floating, 0 for none; key [R] int64 (noise.noise_key). Neighbouring rows of one key
    share the work. What is not a finite number stays as it is.
    """
    if on_gpu(logits):
        from adaserve.kernels import triton_draws

        return triton_draws.perturb(logits, temperature.double(), key)
    run = native.function("gumbel", "perturb_f32", "pppiip") if native.fits(logits) and logits.numel() else None
    if run is None:
        return perturb_reference(logits, temperature, key)
    heat, name = temperature.double().contiguous(), key.contiguous()  # alive until the kernel returns
    result = torch.empty_like(logits)
    run(logits.data_ptr(), heat.data_ptr(), name.data_ptr(), *logits.shape, result.data_ptr())
    return result


def _result_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
