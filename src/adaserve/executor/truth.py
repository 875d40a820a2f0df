"""What the steps of a simulated machine really take: the curves of a profile, times the residual of each step.

This is not the scheduler's LatencyModel: that one starts from a profile too, but has to find out about the rest.
"""

from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np

from adaserve.errors import InvalidConfig
from adaserve.latency import LatencyModel
from adaserve.profile import Profile
from adaserve.step import PhaseTimes, StepShape


class Truth:
    """Tells the seconds of each step. residuals: measured / predicted of one step after another, without end."""

    def __init__(self, profile: Profile, residuals: Iterator[float]) -> None:
        self._curves = LatencyModel(profile)  # never shown a measurement, so it stays the profile
        self._residuals = residuals

    def times(self, shape: StepShape) -> PhaseTimes:
        """Take the next step's residual and return its seconds; all that the curves do not explain counts as commit."""
        phases, residual = self._curves.predict_phases(shape), next(self._residuals)
        return PhaseTimes(
            speculate=phases.speculate * residual, verify=phases.verify * residual, commit=phases.overhead * residual
        )


def drawn_residuals(cv: float, rng: np.random.Generator) -> Iterator[float]:
    """Independent lognormal residuals with mean 1 and standard deviation `cv`."""
    variance = np.log1p(cv**2)  # of the logarithm
    while True:
        yield from rng.lognormal(-variance / 2, np.sqrt(variance), size=1024).tolist()


def recorded_residuals(ratios: Sequence[float], rng: np.random.Generator) -> Iterator[float]:
    """Residuals of a real run, from a random one on, round and round. Raises InvalidConfig unless they are positive."""
    if not ratios or not all(0 < ratio < float("inf") for ratio in ratios):
        raise InvalidConfig("recorded residuals must be finite positive numbers, and at least one")
    first = int(rng.integers(len(ratios)))
    return cycle([*ratios[first:], *ratios[:first]])
