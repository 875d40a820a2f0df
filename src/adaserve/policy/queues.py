"""Where requests wait for a slot: a queue is the order of admission. Made anew for each scheduler, for it may remember things."""

from collections import deque
from collections.abc import Iterator
from typing import Protocol

from adaserve.request import RequestState


class WaitingQueue(Protocol):
    """The waiting requests, in the order in which they may come to run."""

    def push(self, state: RequestState) -> None:
        """Add a newcomer, behind its equals."""
        ...

    def put_back(self, state: RequestState) -> None:
        """Add a request that was pre-empted, ahead of its equals."""
        ...

    def first(self, now: float) -> RequestState | None:
        """Whose turn it is to be admitted; None when nobody waits. Changes nothing."""
        ...

    def take(self, state: RequestState) -> None:
        """Let go of a request that has been admitted."""
        ...

    def drop(self, state: RequestState) -> None:
        """Let go of a request that was cancelled."""
        ...

    def served(self, state: RequestState, tokens: int) -> None:
        """Hear that a running request produced tokens."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[RequestState]: ...


class ArrivalQueue:
    """First come, first served: the rule by which all policies are compared unless they say otherwise."""

    def __init__(self) -> None:
        self._waiting: deque[RequestState] = deque()

    def push(self, state: RequestState) -> None:
        self._waiting.append(state)

    def put_back(self, state: RequestState) -> None:
        self._waiting.appendleft(state)

    def first(self, now: float) -> RequestState | None:
        return self._waiting[0] if self._waiting else None

    def take(self, state: RequestState) -> None:
        self._waiting = without(self._waiting, state)

    def drop(self, state: RequestState) -> None:
        self._waiting = without(self._waiting, state)

    def served(self, state: RequestState, tokens: int) -> None:
        """Nothing depends on it."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[RequestState]:
        return iter(self._waiting)


class Importance(Protocol):
    """How important a request is when not everybody can be served; less is more important."""

    def level(self, state: RequestState) -> float:
        """Its class of importance, which does not change while it waits for a slot."""
        ...

    def rank(self, state: RequestState, now: float) -> float:
        """Its importance at this time: its level, unless waiting has raised it."""
        ...


class RankedQueue:
    """The most important request first; within a level in order of arrival, pre-empted ones ahead.

    Costs time in proportion to the levels, not to the requests: of each level only the first is looked at.
    """

    def __init__(self, ranking: Importance) -> None:
        self._ranking = ranking
        self._levels: dict[float, deque[RequestState]] = {}

    def push(self, state: RequestState) -> None:
        self._levels.setdefault(self._ranking.level(state), deque()).append(state)

    def put_back(self, state: RequestState) -> None:
        self._levels.setdefault(self._ranking.level(state), deque()).appendleft(state)

    def first(self, now: float) -> RequestState | None:
        heads = [waiting[0] for waiting in self._levels.values()]
        return min(heads, key=lambda s: (self._ranking.rank(s, now), s.request.arrived), default=None)

    def take(self, state: RequestState) -> None:
        level = self._ranking.level(state)
        left = without(self._levels.pop(level), state)
        if left:
            self._levels[level] = left

    def drop(self, state: RequestState) -> None:
        self.take(state)

    def served(self, state: RequestState, tokens: int) -> None:
        """What a request has had is read off its state."""

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))

    def __iter__(self) -> Iterator[RequestState]:
        for waiting in self._levels.values():
            yield from waiting


def without(waiting: deque[RequestState], state: RequestState) -> deque[RequestState]:
    """Take a request out of a line; at once if it is the first. The line given may be changed."""
    if waiting[0] is state:
        waiting.popleft()
        return waiting
    return deque(s for s in waiting if s is not state)
