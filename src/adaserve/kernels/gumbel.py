"""Gumbel-max: draw one token per row as the argmax of logits plus temperature times keyed noise.

`argmax(logit / T + g)` and `argmax(logit + T g)` are the same token; the second form needs no division and is plain argmax at
T = 0. Scores are compared in float64 and ties go to the lowest token id.
"""

from array import array

import torch
from torch import Tensor

from adaserve.kernels import native
from adaserve.kernels.truncation import Truncation, truncate
from adaserve.runtime.noise import gumbel_noise, noise_key

SCORES_AT_ONCE = 1 << 20
"""Scores that the twin holds at one time, a few float64 numbers each; it takes as many rows as that allows."""

_SYMBOLS = {torch.float32: "perturbed_argmax_f32", torch.float64: "perturbed_argmax_f64"}


def perturbed_argmax(
    logits: Tensor, temperature: Tensor, seed: Tensor, choice: Tensor, position: Tensor, truncation: Truncation | None = None
) -> Tensor:
    """Draw a token for each row: argmax over v of logits[r, v] + temperature[r] * gumbel(seed, choice, position, v).

    logits [R, V] floating; temperature [R] floating, 0 for greedy; seed, choice, position [R] int64. With a truncation, only over
    the tokens that it keeps. Returns [R] int64, always below V. A row with NaN gets some id that means nothing.
    """
    if logits.is_cuda:
        from adaserve.kernels import triton_draws

        kept = logits if truncation is None else truncate(logits, temperature, truncation)
        return triton_draws.perturbed_argmax(kept, temperature.double(), noise_key(seed, choice, position))
    found = _native(logits, temperature.double(), noise_key(seed, choice, position), truncation)
    if found is None:
        return perturbed_argmax_twin(logits, temperature, seed, choice, position, truncation)
    token, again = found
    if again is not None:
        part = None if truncation is None else truncation.of(again)
        words = seed[again], choice[again], position[again]
        token[again] = perturbed_argmax_twin(logits[again], temperature[again], *words, part)
    return token


def perturbed_argmax_twin(
    logits: Tensor, temperature: Tensor, seed: Tensor, choice: Tensor, position: Tensor, truncation: Truncation | None = None
) -> Tensor:
    """The plain torch twin of `perturbed_argmax`, for any device."""
    token = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)  # [R]
    at_once = max(1, SCORES_AT_ONCE // logits.shape[1])
    for start in range(0, logits.shape[0], at_once):
        rows = slice(start, start + at_once)
        kept = logits[rows] if truncation is None else truncate(logits[rows], temperature[rows], truncation.of(rows))
        noise = gumbel_noise(seed[rows], choice[rows], position[rows], logits.shape[1])  # [r, V]
        token[rows] = torch.argmax(kept.double() + temperature[rows].double().unsqueeze(1) * noise, dim=1)
    return token


def greedy_argmax(logits: Tensor) -> Tensor:
    """Draw the likeliest token of each row, [R] int64: `perturbed_argmax` where every temperature is 0."""
    found = _native(logits, None, None, None)
    if found is None:
        return torch.argmax(logits, dim=1)
    token, again = found
    if again is not None:
        token[again] = torch.argmax(logits[again], dim=1)
    return token


def finite_at(logits: Tensor, token: Tensor) -> Tensor:
    """Whether each row's logit of its token is a finite number: logits [R, V], token [R] -> [R] bool."""
    suits = native.fits(logits) and native.readable(token)
    run = native.function("gumbel", "finite_at_f32", "pipip") if suits else None
    if run is None:
        return finite_at_reference(logits, token)
    finite = torch.empty(token.shape, dtype=torch.bool)  # [R]
    run(logits.data_ptr(), logits.stride(0), token.data_ptr(), len(token), finite.data_ptr())
    return finite


def finite_at_reference(logits: Tensor, token: Tensor) -> Tensor:
    """The plain torch twin of `finite_at`."""
    return logits.gather(1, token.unsqueeze(1))[:, 0].isfinite()


def _native(
    logits: Tensor, temperature: Tensor | None, key: Tensor | None, truncation: Truncation | None
) -> tuple[Tensor, Tensor | None] | None:
    """Draw by the C++ kernel: token [R], and the rows [m] where the twin must decide, None if it need not; None without a kernel.

    temperature, key: None where all rows are greedy.
    """
    if logits.device.type != "cpu" or logits.dtype not in _SYMBOLS or logits.numel() == 0:
        return None
    kernel = native.function("gumbel", _SYMBOLS[logits.dtype], "pipppppiipp")
    if kernel is None:
        return None
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    token = torch.empty(logits.shape[0], dtype=torch.int64)  # [R]
    unsure = array("B", bytes(logits.shape[0]))
    limits = [None] * 3 if truncation is None else [truncation.top_k, truncation.top_p, truncation.min_p]
    arrays = [None if x is None else x.contiguous() for x in (temperature, key, *limits)]  # alive until the kernel returns
    addresses = [None if x is None else x.data_ptr() for x in arrays]
    kernel(logits.data_ptr(), logits.stride(0), *addresses, *logits.shape, token.data_ptr(), unsure.buffer_info()[0])
    return token, torch.tensor([row for row, flag in enumerate(unsure) if flag]) if any(unsure) else None
