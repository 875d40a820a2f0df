"""Strain: how many of those who decode cannot bear steps as long as they are.

Who comes to a slot makes everybody's steps longer until its end, and a burst comes all at once. But first tokens have seconds
where tokens have milliseconds, so newcomers wait while there is much strain, as long as they can (admission.py).
"""

from collections.abc import Sequence

from adaserve.policy.plus.slack import bearable
from adaserve.request import RequestState


class Strain:
    """Told of every step by the scheduling, asked by the queue, and worked out only then. Of one engine's requests: a policy is.

    pace: share of a TPOT target within which requests are to stay.
    """

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._pursuing: Sequence[RequestState] = ()
        self._seconds = 0.0
        self._gain = 1.0
        self._running = 1

    def note(self, pursuing: Sequence[RequestState], seconds: float, gain: float, running: int) -> None:
        """Take in a step. pursuing: those who decode and can attain. seconds: how long it takes without prompts.

        gain: tokens that a request has of it. running: how many requests have slots.
        """
        self._pursuing, self._seconds, self._gain, self._running = pursuing, seconds, gain, running

    def share(self, now: float) -> float:
        """Of the requests that had slots, the share of those who still run and miss their targets if steps stay as they are."""
        short = 0
        for state in self._pursuing:
            if state.slot is not None:
                most = bearable(state, now, self._gain, self._pace)
                short += most is not None and most < self._seconds
        return short / self._running if short else 0.0
