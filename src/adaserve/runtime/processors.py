"""What sampling parameters do to logits before the draw: pure functions of rows, in the order in which they are applied.

    logit bias           l += bias
    repetition penalty   l /= r where l > 0, else l *= r, for tokens of prompt or output
    frequency, presence  l -= f * count + p * (count > 0), for tokens of the output
    minimum length       l = -inf for ids that would end the request too early
    temperature          probabilities are softmax(l / T); the draw scales its noise instead of the logits
    top-k, top-p, min-p  l = -inf below a threshold; each sees the distribution that its predecessors left

Truncation is by value: tokens of equal logits stay or go together, so the result depends on no order of sorting.

    top-k   keeps tokens not below the k-th largest
    top-p   keeps tokens while the mass of all strictly likelier ones is less than p
    min-p   keeps tokens with at least min_p times the greatest probability

R rows, V vocabulary. Functions return new tensors and leave their arguments alone.
"""

import math

import torch
from torch import Tensor

FIRST_PREFIX = 256
"""How many of the largest logits top-p looks at first; 16 times as many whenever they do not cover the mass."""


def add_bias(logits: Tensor, ids: Tensor, bias: Tensor) -> Tensor:
    """Add bias [R, W] to the logits of ids [R, W]; padding carries bias 0."""
    return logits.scatter_add(1, ids, bias.to(logits.dtype))


def penalise(
    logits: Tensor, seen: Tensor, count: Tensor, repetition: Tensor, frequency: Tensor, presence: Tensor
) -> Tensor:
    """Apply the three penalties.

    seen [R, V] bool: the token stands in prompt or output; count [R, V]: how often it stands in the output; the penalties are [R].
    """
    factor = repetition.to(logits.dtype).unsqueeze(1)  # [R, 1]
    scaled = torch.where(logits > 0, logits / factor, logits * factor)
    logits = torch.where(seen, scaled, logits)
    count = count.to(logits.dtype)
    return logits - frequency.to(logits.dtype).unsqueeze(1) * count - presence.to(logits.dtype).unsqueeze(1) * (count > 0)


def forbid(logits: Tensor, ids: Tensor, active: Tensor) -> Tensor:
    """Make ids [R, S] impossible in the rows where active [R]; padding repeats one of the row's own ids."""
    kept = logits.gather(1, ids)  # [R, S]
    return logits.scatter(1, ids, kept.masked_fill(active.unsqueeze(1), -math.inf))


def truncate(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, most_k: int) -> Tensor:
    """Set all logits below each row's threshold to -inf.

    temperature, top_k, top_p, min_p: [R]; top_k 0, top_p 1 and min_p 0 keep everything. Greedy rows (temperature 0) keep
    everything: their argmax would survive anyway. most_k: at least the largest top_k, known to the host; 0 if there is none.
    """
    greedy = temperature == 0
    scale = temperature.masked_fill(greedy, 1.0).double().unsqueeze(1)  # [R, 1]
    lowest = torch.full_like(logits[:, :1], -math.inf)  # [R, 1]
    if most_k > 0:
        lowest = torch.where(greedy.unsqueeze(1), lowest, _top_k_threshold(logits, top_k, most_k))
        logits = logits.masked_fill(logits < lowest, -math.inf)
    greatest = logits.amax(dim=1, keepdim=True)  # [R, 1]
    # Subtract before dividing: a tiny temperature must not overflow.
    scaled = (logits - greatest).double() / scale  # [R, V]
    kept = _nucleus(scaled, torch.where(greedy, 1.0, top_p.double()))
    kept &= scaled >= torch.where(greedy, 0.0, min_p.double()).log().unsqueeze(1)
    return logits.masked_fill(~kept, -math.inf)


def _top_k_threshold(logits: Tensor, top_k: Tensor, most_k: int) -> Tensor:
    """Return the k-th largest logit of each row, [R, 1]; -inf where k is 0 or not below V."""
    vocab_size = logits.shape[1]
    largest = logits.topk(min(most_k, vocab_size), dim=1).values  # [R, K]
    last = (top_k.clamp(1, largest.shape[1]) - 1).unsqueeze(1)
    everything = (top_k == 0) | (top_k >= vocab_size)
    return largest.gather(1, last).masked_fill(everything.unsqueeze(1), -math.inf)


def _nucleus(scaled: Tensor, top_p: Tensor) -> Tensor:
    """Say which tokens belong to each row's nucleus, [R, V] bool; scaled [R, V] are float64 logits with maximum 0."""
    vocab_size = scaled.shape[1]
    probability = torch.softmax(scaled, dim=1)  # [R, V]
    if scaled.is_cuda:  # one full sort is cheaper there than asking the device whether a prefix was enough
        lowest, _ = _lowest_of_nucleus(probability, top_p, vocab_size)
        return probability >= lowest
    lowest = torch.full_like(probability[:, :1], -math.inf)  # [R, 1]
    open_rows = (top_p < 1).nonzero().squeeze(1)
    prefix = FIRST_PREFIX
    while len(open_rows) > 0:
        threshold, covered = _lowest_of_nucleus(probability[open_rows], top_p[open_rows], min(prefix, vocab_size))
        lowest[open_rows] = threshold
        open_rows = open_rows[~covered]
        prefix *= 16
    return probability >= lowest


def _lowest_of_nucleus(probability: Tensor, top_p: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Find the smallest probability inside each row's nucleus among its `prefix` largest: [R, 1], and whether they suffice, [R].

    They suffice when their mass reaches p, for then all tokens beyond them are out, or when there are no others.
    """
    largest = probability.topk(prefix, dim=1).values  # [R, K], descending
    mass = largest.cumsum(dim=1)  # [R, K]
    likelier = torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], dim=1)  # [R, K], mass of those before
    inside = likelier < top_p.unsqueeze(1)  # the first is always inside
    last = inside.sum(dim=1, keepdim=True) - 1
    lowest = largest.gather(1, last).masked_fill((top_p >= 1).unsqueeze(1), -math.inf)
    covered = (mass[:, -1] >= top_p) | (prefix == probability.shape[1])
    return lowest, covered
