"""Who gets a slot next, and whose prompt is read first, by when the first token is due.

Requests of one allowance (the TTFT target that they state, else what nobody waits longer than) come in order of arrival. Who can
no longer attain stands behind those who can: else, past capacity, everybody waits in one line until everybody is late.
"""

import math
from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence

from adaserve.policy.discipline import Forecast
from adaserve.policy.plus.slack import first_token_due
from adaserve.request import RequestState

LATE_TURN = 8
"""Of so many admissions, one is for the request that has been late longest, if there is one: nobody waits for ever."""


class DueQueue:
    """Admits in order of the latest useful time: who has let it pass waits behind the others.

    Nobody comes to a slot while those who did have `reading_rows` prompt tokens yet to compute: what order there is among those
    who wait is lost on those who have slots.

    baseline: seconds per token, to which the longest wait of all refers. wait_share: share of the time that a request may wait
    for its first token in which it must come to a slot, for its prompt takes the rest.
    """

    def __init__(self, baseline: float, wait_share: float, reading_rows: int) -> None:
        self._baseline = baseline
        self._wait_share = wait_share
        self._reading_rows = reading_rows
        self._reading: list[RequestState] = []  # came to slots, and may still have prompts to compute
        self._waiting: list[tuple[float, int, RequestState]] = []  # sorted; the number tells equals apart
        self._back = 0
        self._front = 0
        self._taken = 0

    def push(self, state: RequestState) -> None:
        self._back += 1
        insort(self._waiting, (self._latest(state), self._back, state))

    def put_back(self, state: RequestState) -> None:
        self._front -= 1
        insort(self._waiting, (self._latest(state), self._front, state))

    def first(self, now: float) -> RequestState | None:
        self._reading = [s for s in self._reading if s.slot is not None and not s.is_decoding]
        if not self._waiting or sum(len(s.tokens) - s.computed for s in self._reading) >= self._reading_rows:
            return None
        begun = bisect_right(self._waiting, -math.inf, key=_latest_of)
        in_time = bisect_right(self._waiting, now, key=_latest_of)
        late_turn = self._taken % LATE_TURN == LATE_TURN - 1 and begun < in_time
        if late_turn:
            return self._waiting[begun][2]
        if begun or in_time == len(self._waiting):
            return self._waiting[0][2]
        return self._waiting[in_time][2]

    def take(self, state: RequestState) -> None:
        self.drop(state)
        self._taken += 1
        self._reading.append(state)

    def drop(self, state: RequestState) -> None:
        index = bisect_right(self._waiting, self._latest(state), key=_latest_of) - 1
        while self._waiting[index][2] is not state:
            index -= 1
        del self._waiting[index]

    def served(self, state: RequestState, tokens: int) -> None:
        """Nothing depends on it."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[RequestState]:
        return (state for _, _, state in self._waiting)

    def _latest(self, state: RequestState) -> float:
        """When it must come to a slot; at once if it has begun to answer, for its next token is what is late."""
        if state.decoding_since is not None:
            return -math.inf
        arrived = state.request.arrived
        return arrived + self._wait_share * (first_token_due(state, self._baseline) - arrived)


def due_first(running: Sequence[RequestState], now: float, forecast: Forecast) -> Sequence[RequestState]:
    """Everybody takes part; prompts whose first token is due by a stated target, and not yet late, are read before others."""

    def due(state: RequestState) -> float:
        ttft = state.request.targets.ttft
        if ttft is None or state.decoding_since is not None:
            return math.inf
        at = state.request.arrived + ttft
        return at if at > now else math.inf

    return sorted(running, key=due) if any(s.request.targets.ttft is not None for s in running) else running


def _latest_of(entry: tuple[float, int, RequestState]) -> float:
    return entry[0]
