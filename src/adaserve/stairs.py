"""Stairs: how long a pass takes by its rows, read off a curve of measured points, each of which can be corrected."""

import math
from bisect import bisect_right
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


class Stairs:
    """Time by rows: linear between measured points, flat before the first, rising after the last as before it or on the whole.

    Each point carries a correction factor of its own, 1 to begin with.
    """

    def __init__(self, curve: Mapping[int, float]) -> None:
        self._rows = list(curve)
        self._measured = list(curve.values())
        self._log = [0.0] * len(self._rows)
        self._cost = list(self._measured)
        self._slope = [0.0] * len(self._rows)  # from each point on
        self._settle(0, len(self._rows))

    def __call__(self, rows: int) -> float:
        if rows <= 0 or not self._rows:
            return 0.0
        left = bisect_right(self._rows, rows) - 1
        if left < 0:
            return self._cost[0]
        return self._cost[left] + self._slope[left] * (rows - self._rows[left])

    def run(self, rows: int, most: int) -> NDArray[np.float64]:
        """The time of `rows`, of one more, ... and of `most` more rows: [most + 1]."""
        if not self._rows:
            return np.zeros(most + 1)
        at, last = np.arange(rows, rows + most + 1), self._rows[-1]
        found = np.interp(at, self._rows, self._cost)
        if rows + most > last:
            beyond = max(last + 1 - rows, 0)
            found[beyond:] += self._slope[-1] * (at[beyond:] - last)
        return found

    def nudge(self, rows: int, step: float, bound: float) -> None:
        """Add `step` to the log-corrections around `rows`, shared by nearness; each stays within [-bound, bound]."""
        last = len(self._rows) - 1
        left = max(bisect_right(self._rows, rows) - 1, 0)
        share = 1.0 if left == last else (rows - self._rows[left]) / (self._rows[left + 1] - self._rows[left])
        share = min(max(share, 0.0), 1.0)
        for index, part in ((left, 1.0 - share if left < last else 1.0), (left + 1, share)):
            if index <= last:
                self._log[index] = min(max(self._log[index] + step * part, -bound), bound)
                self._cost[index] = self._measured[index] * math.exp(self._log[index])
        self._settle(left - 1, left + 2)

    def _settle(self, begin: int, end: int) -> None:
        """Work out the slopes from these points on: to the next; after the last as before it or on the whole, never down."""
        last = len(self._rows) - 1
        for left in range(max(begin, 0), min(end, last)):
            self._slope[left] = (self._cost[left + 1] - self._cost[left]) / (self._rows[left + 1] - self._rows[left])
        if last > 0:
            whole = (self._cost[last] - self._cost[0]) / (self._rows[last] - self._rows[0])
            self._slope[last] = max(self._slope[last - 1], whole, 0.0)
