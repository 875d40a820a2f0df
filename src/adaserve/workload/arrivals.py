"""Arrival processes: when requests come. Randomness is an argument."""

import numpy as np

MAX_CV = 100.0
STEADY = 1e-6
"""Below this coefficient of variation gaps cannot be told from equal ones, and their gamma distribution overflows."""


def gamma_times(rate: float, duration: float, cv: float, rng: np.random.Generator) -> list[float]:
    """Times of arrival in [0, duration) in seconds, with gamma-distributed gaps.

    rate: requests per second on average.
    cv: the gaps' coefficient of variation; 1 is Poisson, more is burstier, 0 is a metronome.
    Raises ValueError for a rate or duration that is not positive, and for a cv outside [0, MAX_CV].
    """
    if not (0 < rate < float("inf") and 0 < duration < float("inf")):
        raise ValueError(f"rate and duration must be finite and positive, got {rate} and {duration}")
    if not 0 <= cv <= MAX_CV:
        raise ValueError(f"cv must be between 0 and {MAX_CV:g}, got {cv}")
    times: list[float] = []
    now = 0.0
    while True:
        # A gamma distribution of shape k has cv = 1 / sqrt(k); shape * scale is the mean gap.
        now += 1 / rate if cv < STEADY else rng.gamma(1 / cv**2, cv**2 / rate)
        if now >= duration:
            return times
        times.append(now)
