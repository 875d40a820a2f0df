"""What sampling parameters do to logits before the draw, in the order in which they are applied.

    logit bias           l += bias
    repetition penalty   l /= r where l > 0, else l *= r, for tokens of prompt or output
    frequency, presence  l -= f * count + p * (count > 0), for tokens of the output
    minimum length       l = -inf for ids that would end the request too early
    temperature          probabilities are softmax(l / T); the draw scales its noise instead of the logits
    top-k, top-p, min-p  l = -inf below a threshold

The last two lines happen within the draw: see kernels/truncation.py and kernels/gumbel.py. The others touch a few tokens of each
row, and only those are computed. Functions edit rows [R, V] in place: the caller gives its own copy.
"""

import math

from torch import Tensor


def add_bias(logits: Tensor, ids: Tensor, bias: Tensor) -> None:
    """Add bias [R, W] to the logits of ids [R, W]; padding carries bias 0."""
    logits.scatter_add_(1, ids, bias.to(logits.dtype))


def penalise(logits: Tensor, ids: Tensor, count: Tensor, repetition: Tensor, frequency: Tensor, presence: Tensor) -> None:
    """Apply the three penalties.

    ids [R, K]: all tokens of prompt and output, repeated as may be; count [R, K]: how often each stands in the output; the
    penalties are [R].
    """
    factor, per_token, once = (x.to(logits.dtype).unsqueeze(1) for x in (repetition, frequency, presence))  # [R, 1]
    before = logits.gather(1, ids)  # [R, K]
    after = (before / factor).where(before > 0, before * factor) - per_token * count - once * (count > 0)
    # Repeated ids write the same number again.
    logits.scatter_(1, ids, after)


def forbid(logits: Tensor, ids: Tensor, active: Tensor) -> None:
    """Make ids [R, S] impossible in the rows where active [R]; padding repeats one of the row's own ids."""
    before = logits.gather(1, ids)  # [R, S]
    logits.scatter_(1, ids, before.masked_fill(active.unsqueeze(1), -math.inf))
