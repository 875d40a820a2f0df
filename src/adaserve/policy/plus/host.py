"""The selection of `adaserve+` for candidates in the host's memory: arrays instead of tensors, to the same result.

A dozen requests have a hundred candidates, and an operation on those takes longer to start than to run. On a CPU, where a step
may take ten milliseconds, a hundred operations on tensors were 3% of it. So there are few of them here, on flat arrays: the nodes
of all requests stand one after the other, each request's root before them, and "of the parent" is one look-up by a flat index.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaserve.tree import MAX_NODES, Source

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NEVER = 5e-324
"""The smallest number above 0: what padding is divided by."""


@dataclass(frozen=True)
class Forest:
    """The candidates of n requests as arrays, [n, N] each: fields of a CandidateTree."""

    parent: Ints
    depth: Ints
    path_prob: Floats
    source: Ints


@dataclass(frozen=True)
class Estimates:
    """A table of estimates, linear between its points.

    points [P], rising: what a draft may say, 0 and 1 among it. width [P - 1]: from each to the next. value [rows * P].
    """

    points: Floats
    width: Floats
    value: Floats

    def __call__(self, said: Floats, row: Ints) -> Floats:
        """The estimates of the table's rows for what a draft said; said and row of one shape."""
        left = self.points[1:-1].searchsorted(said, "right")
        below = row * len(self.points) + left
        low, high = self.value.take(below), self.value.take(below + 1)
        found: Floats = low + (high - low) * (said - self.points.take(left)) / self.width.take(left)
        return found


def calibrated(forest: Forest, row: Ints, estimates: Estimates) -> Floats:
    """f of every candidate, the product of the estimates along its path, [n, N]; 0 for padding.

    row [n, N]: each candidate's row of the table, were it the first child of its parent; a later one's follows it.
    """
    n, columns = forest.parent.shape
    root = np.arange(0, n * (columns + 1), columns + 1)[:, None]  # [n, 1], flat cells: a root, then its request's columns
    above = forest.parent + (root + 1)  # [n, N], the parent's cell
    mine = root + np.arange(1, columns + 1)  # [n, N], a candidate's own
    real = forest.path_prob > 0

    prob = np.ones((n, columns + 1))  # [n, 1 + N], the root's is 1
    prob[:, 1:] = forest.path_prob
    said = forest.path_prob / np.maximum(prob.take(above), NEVER)  # [n, N]
    first = _first_siblings(forest, real, above, mine)  # [n, N]
    edge = np.ones((n, columns + 1))  # [n, 1 + N]
    edge[:, 1:] = estimates(said, row + (first < mine))
    prob[:, 1:] = np.minimum(edge[:, 1:], edge.take(first)) * real

    up = np.empty((n, columns + 1), dtype=np.int64)  # [n, 1 + N], a root is its own parent
    up[:, :1], up[:, 1:] = root, above
    for _ in range(int(forest.depth.max()).bit_length()):  # pointer jumping
        prob = prob * prob.take(up)
        up = up.take(up)
    return prob[:, 1:]


def _first_siblings(forest: Forest, real: Bools, above: Ints, mine: Ints) -> Ints:
    """The cell of each candidate's first sibling, itself included, [n, N]; its own for what look-up proposed.

    What look-up alone proposed and padding are nobody's siblings. Padding gets any cell.
    """
    looked_up = forest.source.any()
    cells = np.flatnonzero(real & (forest.source != Source.NGRAM) if looked_up else real)[::-1]
    first = np.zeros(mine.size + len(mine), dtype=np.int64)  # [n * (1 + N)], by the parent's cell
    first[above.take(cells)] = mine.take(cells)  # of several the last one written stays: the first column
    found = first.take(above)
    return np.where(forest.source != Source.MODEL, mine, found) if looked_up else found


def largest_surplus(f: Floats, need: Floats, urgency: float, most: int, price: Floats) -> tuple[Bools, Bools]:
    """The chosen candidates, and those among them that their request needs: [n, N] each.

    need [n]: tokens that each must gain, at most depth + 1. most: nodes over all. price [K]: of 0, 1, ... nodes; empty: none.
    """
    n, columns = f.shape
    ranked = (-f).argsort(axis=1, kind="stable")[:, :MAX_NODES]  # [n, R], each request's best first
    ranked += np.arange(0, n * columns, columns)[:, None]  # as flat cells
    prob = f.take(ranked)  # [n, R]
    before = np.ones_like(prob)  # [n, R], tokens expected without the node
    before[:, 1:] = prob[:, :-1]
    short = before.cumsum(1) < need[:, None]  # [n, R]
    worth = np.where(short, prob * urgency, prob).T.ravel()  # [R * n], rank-major: of equals the request with fewer nodes first
    flat = (-worth).argsort(kind="stable")[:most]  # [K]
    best = worth.take(flat)
    count = int(np.count_nonzero(best > 0))
    if len(price):
        surplus = best.cumsum() - price[1 : len(best) + 1]  # [K], of the best 1, 2, ... nodes
        count = min(count, int(surplus.argmax()) + 1 if surplus.max(initial=-np.inf) > -price[0] else 0)
    # Worth never rises with rank, so the best nodes of all are each request's best: connected trees.
    bought = flat[:count]
    cells = ranked.T.ravel().take(bought)
    chosen, for_need = np.zeros((2, n, columns), dtype=bool)
    chosen.put(cells, True)
    for_need.put(cells, short.T.ravel().take(bought))
    return chosen, for_need
