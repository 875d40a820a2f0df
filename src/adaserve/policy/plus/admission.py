"""Who gets a slot next, and whose prompt is read first, by when the first token is due.

Requests of one allowance (the TTFT target that they state, else what nobody waits longer than) come in order of arrival. Who can
no longer attain stands behind those who can: else, past capacity, everybody waits in one line until everybody is late.
While those who decode cannot bear the steps that they have (strain.py), nobody comes as long as all who wait can be in time.
"""

import math
from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from adaserve.policy.discipline import Forecast
from adaserve.policy.plus.parts import PlusConstants
from adaserve.policy.plus.slack import first_token_due
from adaserve.policy.plus.strain import Strain
from adaserve.request import RequestState


@dataclass(frozen=True)
class _Reader:
    """A request that came to a slot at `since`, with `rows` prompt rows up to and with all of its own.

    What the page cache holds counts as if it had to be read: of those who wait nobody knows how much that will be.
    """

    state: RequestState
    since: float
    rows: int


class DueQueue:
    """Admits in order of when first tokens are due: who cannot be in time any more waits behind the others.

    Nobody comes to a slot while those who did have many prompt tokens yet to compute: what order there is among those who wait
    is lost on those who have slots.

    baseline: seconds per token, to which the longest wait of all refers. strain: of those who decode; None: nobody is held.
    """

    def __init__(self, baseline: float, constants: PlusConstants, strain: Strain | None) -> None:
        self._baseline = baseline
        self._constants = constants
        self._strain = strain
        self._reading: list[_Reader] = []  # came to slots, and may still have prompts to compute
        self._row_seconds = 0.0  # from slot to first token, for each row of the own prompt and of those before it
        self._now = 0.0
        self._waiting: list[tuple[float, int, RequestState]] = []  # sorted; the number tells equals apart
        self._back = 0
        self._front = 0
        self._taken = 0

    def push(self, state: RequestState) -> None:
        self._back += 1
        insort(self._waiting, (self._due(state), self._back, state))

    def put_back(self, state: RequestState) -> None:
        self._front -= 1
        insort(self._waiting, (self._due(state), self._front, state))

    def first(self, now: float) -> RequestState | None:
        self._now = now
        unread = self._look_at_readers()
        if not self._waiting or unread >= self._constants.reading_rows:
            return None
        begun = bisect_right(self._waiting, -math.inf, key=_due_of)
        in_time = bisect_right(self._waiting, now, key=_due_of)
        for due, _, state in islice(self._waiting, in_time, None):
            if now + self._reading_time(state, unread) <= due:
                break
            in_time += 1
        if self._taken % self._constants.late_turn == self._constants.late_turn - 1 and begun < in_time:
            return self._waiting[begun][2]
        if begun or in_time == len(self._waiting):
            return self._waiting[0][2]
        return None if self._holds(in_time, unread) else self._waiting[in_time][2]

    def _holds(self, first: int, unread: int) -> bool:
        """Whether all who can be in time, from `first` on, are better held back: nobody of them must be read now.

        Each of them waits for those before it to be read, whatever their targets. Nobody is held before anything was read: then
        nothing is known of how long that takes.
        """
        c, each = self._constants, self._constants.reading_margin * self._row_seconds
        if self._strain is None or not each or self._strain.share(self._now) <= c.hold_share:
            return False
        rows = unread
        for due, _, state in islice(self._waiting, first, None):
            rows += len(state.tokens)
            if self._now + each * rows >= due - (1 - c.hold_until) * (due - state.request.arrived):
                return False
        return True

    def _look_at_readers(self) -> int:
        """Forget those who read no more, and learn from them how long it took; the rows that the others have to read."""
        unread, reading, rate = 0, [], self._constants.learning.reading_rate
        for reader in self._reading:
            state = reader.state
            if state.decoding_since is not None and state.decoding_since > reader.since:
                took = (state.decoding_since - reader.since) / reader.rows
                self._row_seconds += (rate if self._row_seconds else 1.0) * (took - self._row_seconds)  # the first one says all
            elif state.slot is not None and not state.is_decoding:
                reading.append(reader)
                unread += len(state.tokens) - state.computed
        self._reading = reading
        return unread

    def _reading_time(self, state: RequestState, unread: int) -> float:
        """How long a request's first token will take from its slot on: prompts that are due by a stated target are read first."""
        ahead = unread if state.request.targets.ttft is None else 0
        return self._constants.reading_margin * self._row_seconds * (ahead + len(state.tokens))

    def take(self, state: RequestState) -> None:
        self.drop(state)
        self._taken += 1
        # `first` has just said who it is, and forgotten those who read no more.
        rows = len(state.tokens) + sum(len(r.state.tokens) - r.state.computed for r in self._reading)
        self._reading.append(_Reader(state, self._now, rows))

    def drop(self, state: RequestState) -> None:
        index = bisect_right(self._waiting, self._due(state), key=_due_of) - 1
        while self._waiting[index][2] is not state:
            index -= 1
        del self._waiting[index]

    def served(self, state: RequestState, tokens: int) -> None:
        """Nothing depends on it."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[RequestState]:
        return (state for _, _, state in self._waiting)

    def _due(self, state: RequestState) -> float:
        """When its first token is due; at once if it has begun to answer, for its next token is what is late."""
        return -math.inf if state.decoding_since is not None else first_token_due(state, self._baseline)


def due_first(running: Sequence[RequestState], now: float, forecast: Forecast) -> Sequence[RequestState]:
    """Everybody takes part; prompts whose first token is due by a stated target, and not yet late, are read before others."""

    def due(state: RequestState) -> float:
        ttft = state.request.targets.ttft
        if ttft is None or state.decoding_since is not None:
            return math.inf
        at = state.request.arrived + ttft
        return at if at > now else math.inf

    return sorted(running, key=due) if any(s.request.targets.ttft is not None for s in running) else running


def _due_of(entry: tuple[float, int, RequestState]) -> float:
    return entry[0]
