"""A discipline: who is served when not everybody can be. Admission, displacement, and turns among the running."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from adaserve.policy.queues import ArrivalQueue, Importance, WaitingQueue
from adaserve.request import RequestState

Forecast = Callable[[int, int], float]
"""Predicted seconds of a step that only decodes, from its rows and the tokens of context that attention reads."""


class Turns(Protocol):
    """Decides which running requests take part in a step. The others keep their slots and pages, and wait."""

    def __call__(self, running: Sequence[RequestState], now: float, forecast: Forecast) -> Sequence[RequestState]:
        """Choose among the running requests, the most important first; at least one, if there are any."""
        ...


def everybody(running: Sequence[RequestState], now: float, forecast: Forecast) -> Sequence[RequestState]:
    """All running requests take part in every step."""
    return running


def in_order_of_arrival(baseline: float) -> WaitingQueue:
    """First come, first served; the baseline does not matter."""
    return ArrivalQueue()


@dataclass(frozen=True)
class Discipline:
    """Who is served when not everybody can be.

    queue: makes an empty waiting queue, whose order is that of admission, for a machine of a baseline (seconds per token).
    ranking: how important the running requests are. A waiting request displaces a strictly less important running one when
        slots or pages are short, and the least important is pre-empted first when running requests need pages. None: the
        youngest is pre-empted first, and nobody makes room for a newcomer.
    turns: which running requests take part in a step.
    """

    queue: Callable[[float], WaitingQueue] = in_order_of_arrival
    ranking: Importance | None = None
    turns: Turns = everybody


FIRST_COME = Discipline()
"""Admission in order of arrival; who runs takes part in every step."""
