"""Times the phases of a step: by the clock where the host computes, by events in the stream where a device does."""

from itertools import pairwise
from typing import Protocol

import torch

from adaserve.clock import Clock


class Stopwatch(Protocol):
    """Marks moments, and says how far apart they were."""

    def mark(self) -> None:
        """Remember this moment of the work, be it done or enqueued."""
        ...

    def laps(self) -> tuple[float, ...]:
        """Seconds between the marks, in order; forgets them. The work up to the last mark must be done."""
        ...


class ClockStopwatch:
    """Reads a clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._marks: list[float] = []

    def mark(self) -> None:
        """Read the clock."""
        self._marks.append(self._clock.now())

    def laps(self) -> tuple[float, ...]:
        """Seconds between the marks."""
        marks, self._marks = self._marks, []
        return tuple(after - before for before, after in pairwise(marks))


class EventStopwatch:
    """Records events in a CUDA stream, so that a lap is the device's time and not that of enqueueing."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._marks: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """Record an event."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        self._marks.append(event)

    def laps(self) -> tuple[float, ...]:
        """Seconds between the events."""
        marks, self._marks = self._marks, []
        return tuple(before.elapsed_time(after) / 1e3 for before, after in pairwise(marks))
