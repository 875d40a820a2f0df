"""Workloads from a mix of classes, the project's own prompts and an arrival process, drawn or recorded."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from adaserve.workload.arrivals import gamma_times
from adaserve.workload.classes import Mix, RequestClass
from adaserve.workload.prompts import prompts
from adaserve.workload.workload import Arrival, Workload


def generate(mix: Mix, rate: float, duration: float, rng: np.random.Generator, cv: float = 1.0) -> Workload:
    """Draw a workload: `rate` requests per second on average for `duration` seconds, classes by their shares.

    cv: coefficient of variation of the gaps between arrivals; 1 is Poisson, more is burstier.
    Prompts of a class come in random order and repeat only when all have been used. A longer workload of the same seed begins
    with the shorter one.
    """
    times, rest = rng.spawn(2)
    return generate_at(gamma_times(rate, duration, cv, times), mix, rest)


def generate_at(times: Sequence[float], mix: Mix, rng: np.random.Generator) -> Workload:
    """Draw requests for given times of arrival, in seconds: recorded ones, say. Otherwise as `generate`."""
    draw, *decks = rng.spawn(1 + len(mix.shares))
    picks = draw.choice(len(mix.shares), size=len(times), p=list(mix.shares.values()))
    return _dealt(times, picks.tolist(), mix, decks)


def generate_fluctuating(
    mix: Mix, rate: float, duration: float, rng: np.random.Generator, period: float, swing: float = 0.9
) -> Workload:
    """Draw a workload whose classes peak at different times, one after the other in every `period` seconds.

    Class i of k arrives as a Poisson process of intensity share_i * rate * (1 + swing * cos(2 pi (t / period - i / k))).
    swing: 0 is steady, 1 leaves a class silent half a period from its peak. Raises ValueError outside [0, 1].
    """
    if not 0 <= swing <= 1 or not 0 < period < math.inf:
        raise ValueError(f"swing must be between 0 and 1 and the period positive, got {swing} and {period}")
    count = len(mix.shares)
    times, thins, decks = (rng.spawn(count) for _ in range(3))
    arrived: list[tuple[float, int]] = []
    for index, share in enumerate(mix.shares.values()):
        # Thinning: draw at the peak's intensity, keep each arrival with the ratio of its moment's intensity to the peak's.
        for at in gamma_times(share * rate * (1 + swing), duration, 1.0, times[index]):
            if thins[index].random() * (1 + swing) < 1 + swing * math.cos(2 * math.pi * (at / period - index / count)):
                arrived.append((at, index))
    arrived.sort()
    return _dealt([at for at, _ in arrived], [index for _, index in arrived], mix, decks)


def _dealt(times: Sequence[float], picks: Sequence[int], mix: Mix, rngs: Sequence[np.random.Generator]) -> Workload:
    classes = list(mix.shares)
    decks = [_deal(prompts(kind.name), rng) for kind, rng in zip(classes, rngs, strict=True)]
    return Workload(tuple(_arrival(at, classes[pick], next(decks[pick])) for at, pick in zip(times, picks, strict=True)))


def _deal(deck: tuple[str, ...], rng: np.random.Generator) -> Iterator[str]:
    while True:
        for index in rng.permutation(len(deck)):
            yield deck[index]


def _arrival(at: float, kind: RequestClass, prompt: str) -> Arrival:
    return Arrival(at=at, prompt=prompt, class_name=kind.name, slo=kind.slo, max_tokens=kind.max_tokens, chat=kind.chat)
