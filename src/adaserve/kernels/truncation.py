"""Truncation of a distribution to its likelier tokens: top-k, then top-p, then min-p.

Each sees the distribution that its predecessors left. Truncation is by value: tokens of equal logits stay or go together, so
the result depends on no order of sorting.

    top-k   keeps tokens not below the k-th largest
    top-p   keeps tokens while the mass of all strictly likelier ones is less than p
    min-p   keeps tokens with at least min_p times the greatest probability

This is the plain form, by thresholds; gumbel.cpp reaches the same tokens without sorting.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_PREFIX = 256
"""How many of the largest logits top-p looks at first; 16 times as many whenever they do not cover the mass."""


@dataclass(frozen=True)
class Truncation:
    """What each of R rows keeps: top_k [R] int64, 0 for all; top_p [R] float64, 1 for all; min_p [R] float64, 0 for all.

    `most_k` is at least the largest top_k, known to the host; 0 if there is none.
    """

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    most_k: int

    def of(self, rows: "slice | Tensor") -> "Truncation":
        """Take some of the rows."""
        return Truncation(self.top_k[rows], self.top_p[rows], self.min_p[rows], self.most_k)


def truncate(logits: Tensor, temperature: Tensor, truncation: Truncation) -> Tensor:
    """Set all logits below each row's threshold to -inf; returns a new tensor.

    logits [R, V]; temperature [R]. Greedy rows (temperature 0) keep everything: their argmax would survive anyway.
    """
    greedy = temperature == 0
    scale = temperature.masked_fill(greedy, 1.0).double().unsqueeze(1)  # [R, 1]
    lowest = torch.full_like(logits[:, :1], -math.inf)  # [R, 1]
    if truncation.most_k > 0:
        lowest = torch.where(greedy.unsqueeze(1), lowest, _top_k_threshold(logits, truncation.top_k, truncation.most_k))
        logits = logits.masked_fill(logits < lowest, -math.inf)
    greatest = logits.amax(dim=1, keepdim=True)  # [R, 1]
    # Subtract before dividing: a tiny temperature must not overflow.
    scaled = (logits - greatest).double() / scale  # [R, V]
    kept = _nucleus(scaled, torch.where(greedy, 1.0, truncation.top_p))
    kept &= scaled >= torch.where(greedy, 0.0, truncation.min_p).log().unsqueeze(1)
    # A row that is not finite stays so, for its draw to be recognised as meaningless.
    return logits.masked_fill(~(kept | ~greatest.isfinite()), -math.inf)


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
