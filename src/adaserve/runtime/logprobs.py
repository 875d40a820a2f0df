"""Log-probabilities of produced tokens, for the requests that ask.

They are the log-softmax of the model's own logits, before bias, penalties, temperature and truncation: what the model thinks,
as vLLM reports by default. They are computed at commit and for committed rows alone, where tokens reach the host anyway.
"""

import torch
from torch import Tensor

from adaserve.step import TokenLogprobs


def token_logprobs(logits: Tensor, token: Tensor, alternatives: int) -> tuple[TokenLogprobs, ...]:
    """Describe the produced tokens of one request.

    logits [K, V]: the rows that the tokens were drawn from; token [K] int64; alternatives: how many of the likeliest tokens to
    list beside each, at most V. Rank 1 is the likeliest; equals share the best rank of theirs, and are listed by token id.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    logprob = torch.log_softmax(logits, dim=1, dtype=dtype)  # [K, V]
    own = logprob.gather(1, token.unsqueeze(1))  # [K, 1]
    rank = (logprob > own).sum(dim=1) + 1  # [K]
    values, ids = logprob.topk(min(alternatives, logits.shape[1]), dim=1)  # [K, alternatives]
    top = [
        tuple(sorted(zip(row_ids, row_values, strict=True), key=lambda entry: (-entry[1], entry[0])))
        for row_ids, row_values in zip(ids.tolist(), values.tolist(), strict=True)
    ]
    return tuple(TokenLogprobs(*fields) for fields in zip(token.tolist(), own[:, 0].tolist(), rank.tolist(), top, strict=True))
