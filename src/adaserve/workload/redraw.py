"""Other shares of the same trace: the times stay, the classes are drawn anew."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from adaserve.workload.workload import Arrival, Workload


def with_urgent_share(workload: Workload, urgent: str, share: float, rng: np.random.Generator) -> Workload:
    """The workload's times with classes drawn anew: `share` of class `urgent`, the rest split evenly (the paper's Figure 10).

    Prompts, lengths and targets are those of the workload's own requests of the class drawn, in random order, each used once
    before any is used again. Raises ValueError for a share outside [0, 1], or one that needs a class that is not there.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the urgent share must be between 0 and 1, got {share}")
    others = sorted(name for name in workload.classes if name != urgent)
    if share > 0 and urgent not in workload.classes:
        raise ValueError(f"the workload has no class {urgent!r}, only {', '.join(workload.classes)}")
    if share < 1 and not others:
        raise ValueError(f"the workload has no class beside {urgent!r}")
    names = [urgent, *others]
    shares = [share, *((1 - share) / len(others) for _ in others)]
    picks = rng.choice(len(names), size=len(workload), p=shares)
    own = [[a for a in workload.arrivals if a.class_name == name] for name in names]
    decks = [_deal(cards, rng) for cards in own]
    drawn = zip(workload.arrivals, picks.tolist(), strict=True)
    return Workload(tuple(replace(next(decks[pick]), at=arrival.at) for arrival, pick in drawn))


def _deal(cards: Sequence[Arrival], rng: np.random.Generator) -> Iterator[Arrival]:
    while True:
        for index in rng.permutation(len(cards)):
            yield cards[index]
