"""Where time comes from: the only module of the package that reads a clock.

Everything else takes the time as an argument, so a server under a wall clock and a replay under a virtual one run the same code.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time in seconds since an arbitrary start; never goes back."""

    def now(self) -> float:
        """Return the present time in seconds."""
        ...

    def wait_until(self, when: float) -> None:
        """Return when `when` has come: by sleeping, or by moving a virtual clock there."""
        ...


class WallClock:
    """Real time, from the system's monotonic clock."""

    def now(self) -> float:
        return time.perf_counter()

    def wait_until(self, when: float) -> None:
        delay = when - self.now()
        if delay > 0:
            time.sleep(delay)


class VirtualClock:
    """Simulated time: moves only when told to."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def wait_until(self, when: float) -> None:
        self._now = max(self._now, when)

    def advance(self, seconds: float) -> None:
        """Move forward by `seconds`; raises ValueError for a negative step."""
        if seconds < 0:
            raise ValueError(f"a clock cannot go back by {-seconds} s")
        self._now += seconds


def unix_time() -> int:
    """Return the seconds since 1970, for labels that other programs read; no duration is computed from it."""
    return int(time.time())
