"""Workloads from a mix of classes, the project's own prompts and an arrival process."""

from collections.abc import Iterator

import numpy as np

from adaserve.workload.arrivals import gamma_times
from adaserve.workload.classes import Mix, RequestClass
from adaserve.workload.prompts import prompts
from adaserve.workload.workload import Arrival, Workload


def generate(mix: Mix, rate: float, duration: float, rng: np.random.Generator, cv: float = 1.0) -> Workload:
    """Draw a workload: `rate` requests per second on average for `duration` seconds, classes by their shares.

    cv: coefficient of variation of the gaps between arrivals; 1 is Poisson, more is burstier.
    Prompts of a class come in random order and repeat only when all have been used.
    """
    classes = list(mix.shares)
    decks = {kind: _deal(prompts(kind.name), rng) for kind in classes}
    times = gamma_times(rate, duration, cv, rng)
    picks = rng.choice(len(classes), size=len(times), p=list(mix.shares.values()))
    return Workload(tuple(_arrival(at, classes[pick], next(decks[classes[pick]])) for at, pick in zip(times, picks, strict=True)))


def _deal(deck: tuple[str, ...], rng: np.random.Generator) -> Iterator[str]:
    while True:
        for index in rng.permutation(len(deck)):
            yield deck[index]


def _arrival(at: float, kind: RequestClass, prompt: str) -> Arrival:
    return Arrival(at=at, prompt=prompt, class_name=kind.name, slo=kind.slo, max_tokens=kind.max_tokens, chat=kind.chat)
