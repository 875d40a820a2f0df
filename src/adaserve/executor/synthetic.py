"""Made-up recordings: positions drawn from a recorded distribution, for drafts better or worse than the recorded one.

Positions are drawn independently, weighted by exp(lambda * logit(p1)) with p1 the probability of the draft's first choice. That
makes a draft surer or less sure of itself, and leaves alone how often it is right when it says p1. lambda is chosen so that the
first choice is right as often as asked. What gets lost is the order: in real outputs easy positions stand together.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from adaserve.errors import InvalidConfig
from adaserve.executor.acceptance import Recording

STRONGEST = 6.0
"""Bound of |lambda|."""

SUREST = 0.95
"""Positions of a p1 above it, or below 1 - it, weigh alike: otherwise a handful of extreme ones would come to stand for all."""


def resample(
    recording: Recording, top1: Mapping[str, float], rng: np.random.Generator, sequences: int = 64, length: int = 256
) -> Recording:
    """Draw `sequences` outputs of `length` tokens for every class of a recording.

    top1: by class, the share of positions at which the draft's first choice shall be right; classes not named keep theirs.
    Raises InvalidConfig for a class that was not recorded, or a share that no weighting reaches.
    """
    unknown = [name for name in top1 if name not in recording.classes]
    if unknown:
        raise InvalidConfig(f"there is no class {unknown[0]!r} in {recording.pair}, only {', '.join(recording.classes)}")
    drawn, classes = [], {}
    for number, (name, of_class) in enumerate(recording.classes.items()):
        mine = recording.positions(of_class)
        weight = _weights(recording.prob[mine, 0], recording.rank[mine] == 0, top1.get(name), f"class {name} of {recording.pair}")
        drawn.append(mine.start + rng.choice(len(weight), size=sequences * length, p=weight))
        classes[name] = range(number * sequences, (number + 1) * sequences)
    position = np.concatenate(drawn)  # [P]
    return Recording(
        prob=recording.prob[position],
        rank=recording.rank[position],
        start=np.arange(0, len(position) + 1, length),
        prompt=np.zeros(len(classes) * sequences, dtype=np.uint64),
        classes=classes,
        pair=recording.pair,
        temperature=recording.temperature,
        source=f"positions drawn from: {recording.source}",
        coupled=recording.coupled,
    )


def _weights(confidence: NDArray[np.float64], right: NDArray[np.bool_], top1: float | None, label: str) -> NDArray[np.float64]:
    """Probabilities to draw each position with, so that `right` comes with probability top1; uniform for None."""
    bounded = confidence.clip(1 - SUREST, SUREST)
    logit = np.log(bounded / (1 - bounded))  # [P]

    def weights(strength: float) -> NDArray[np.float64]:
        exponent = strength * logit
        weight = np.exp(exponent - exponent.max())
        return np.asarray(weight / weight.sum())

    def share(strength: float) -> float:
        return float(weights(strength)[right].sum())

    if top1 is None:
        return weights(0.0)
    low, high = -STRONGEST, STRONGEST
    if not share(low) <= top1 <= share(high):
        raise InvalidConfig(
            f"{label} cannot be right in {top1:.2f} of its first choices: choose between {share(low):.2f} and {share(high):.2f}"
        )
    for _ in range(50):  # bisection
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) < top1 else (low, middle)
    return weights(high)
