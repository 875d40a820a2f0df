"""Calibration without temperatures, node by node: what policy/plus/calibration.py does within one band."""

import bisect
import itertools

from adaserve.policy.plus.calibration import BIRTHS, CELLS, DEPTHS, EDGES, LEAST, ROWS
from adaserve.policy.plus.parts import LearningConstants
from adaserve.step import Drafted
from adaserve.tree import Source

LEARNING = LearningConstants()


class CountedPlainly:
    """Counts every node that was put to the test, siblings being known by their request, depth and parent's f."""

    def __init__(self) -> None:
        self._tried = [[0.0] * CELLS for _ in range(ROWS)]
        self._kept = [[0.0] * CELLS for _ in range(ROWS)]

    def learn(self, drafted: Drafted) -> None:
        for table in (self._tried, self._kept):
            for row in table:
                row[:] = [LEARNING.trial_fade * count for count in row]
        eldest: dict[tuple[int, int, float], int] = {}
        for node, source in enumerate(drafted.source):
            edge = drafted.edge_prob[node]
            family = drafted.request[node], drafted.depth[node], round(drafted.path_prob[node] / edge, 9)
            later = source != Source.NGRAM and eldest.setdefault(family, node) != node and source == Source.MODEL
            if drafted.reached[node]:
                row = (source * DEPTHS + min(drafted.depth[node], DEPTHS) - 1) * BIRTHS + later
                cell = bisect.bisect_left(EDGES, edge)
                self._tried[row][cell] += 1.0
                self._kept[row][cell] += drafted.accepted[node]

    def table(self) -> list[list[float]]:
        """The nearest rising estimates: the least of all upper means, of the greatest of all lower ones."""
        middle = [(low + high) / 2 for low, high in itertools.pairwise([0.0, *EDGES, 1.0])]
        found = []
        for tried, kept in zip(self._tried, self._kept, strict=True):
            weight = [t + LEARNING.prior_trials for t in tried]
            total = [k + LEARNING.prior_trials * said for k, said in zip(kept, middle, strict=True)]

            def mean(low: int, high: int, total: list[float] = total, weight: list[float] = weight) -> float:
                return sum(total[low : high + 1]) / sum(weight[low : high + 1])

            rising = [max(min(mean(low, high) for high in range(at, CELLS)) for low in range(at + 1)) for at in range(CELLS)]
            found.append([max(value, LEAST) for value in rising])
        return found
