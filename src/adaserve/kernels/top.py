"""The likeliest tokens of a distribution, with their log probabilities."""

import torch
from torch import Tensor

from adaserve.kernels import native
from adaserve.kernels.gpu import on_gpu


def top_tokens_reference(logits: Tensor, inverse_temperature: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The plain torch twin of `top_tokens`."""
    wide = logits.double().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)  # [R, V]
    value, token = torch.sort(wide, dim=-1, descending=True, stable=True)
    scale = inverse_temperature.double().unsqueeze(-1)  # [R, 1]
    top = value[:, :1]
    # Differences before scaling: an infinite best logit takes all the probability, a row of nothing has none.
    gap = torch.where(value == top, 0.0, value - top) * scale
    gap = torch.where(top == -torch.inf, -torch.inf, torch.where(value == -torch.inf, -torch.inf, gap))
    total = gap.exp().sum(-1, keepdim=True).log()
    log_prob = torch.where(gap == -torch.inf, gap, gap - total)
    return token[:, :width].contiguous(), log_prob[:, :width].contiguous()


def top_tokens(logits: Tensor, inverse_temperature: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` likeliest tokens under softmax(logits * inverse_temperature), likeliest first, ties to the lower id.

    logits [R, V]; inverse_temperature [R] > 0. Returns token [R, width] int64 and log_prob [R, width] float64.
    A logit that is not a number counts as impossible; a row of nothing else yields valid ids with log probability -inf.
    Raises ValueError when width exceeds the vocabulary.
    """
    if not 0 < width <= logits.shape[-1]:
        raise ValueError(f"width {width} is not within 1..{logits.shape[-1]}")
    if on_gpu(logits):
        from adaserve.kernels import triton_draws

        if width <= triton_draws.WIDEST:
            return triton_draws.top_tokens(logits, inverse_temperature, width)
    run = native.function("top", "top_tokens", "piipipp") if native.fits(logits) else None
    if run is None:
        return top_tokens_reference(logits, inverse_temperature, width)
    rows, vocabulary = logits.shape
    inverse = inverse_temperature.double().contiguous()  # [R]
    token = torch.empty(rows, width, dtype=torch.int64)  # [R, width]
    log_prob = torch.empty(rows, width, dtype=torch.float64)
    run(logits.data_ptr(), rows, vocabulary, inverse.data_ptr(), width, token.data_ptr(), log_prob.data_ptr())
    return token, log_prob


def argmax_reference(logits: Tensor) -> Tensor:
    """The plain torch twin of `argmax`."""
    return logits.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).argmax(-1)


def argmax(logits: Tensor) -> Tensor:
    """The likeliest token of every row, ties to the lower id: logits [R, V] -> token [R] int64.

    A logit that is not a number counts as impossible; a row of nothing else yields token 0.
    """
    run = native.function("top", "argmax", "piip") if native.fits(logits) else None
    if run is None:
        return argmax_reference(logits)
    rows, vocabulary = logits.shape
    token = torch.empty(rows, dtype=torch.int64)  # [R]
    run(logits.data_ptr(), rows, vocabulary, token.data_ptr())
    return token
