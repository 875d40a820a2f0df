"""The selection of `adaserve+` for candidates in the host's memory: arrays instead of tensors, to the same result.

A dozen requests have a hundred candidates, and a tensor operation on those takes longer to start than to run. On a CPU, where a
step may take ten milliseconds, that was 3% of it.
"""

import numpy as np
from numpy.typing import NDArray

from adaserve.tree import MAX_NODES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def first_sibling(path_prob: Floats, parent: Ints, counted: Bools) -> Ints:
    """The column of each candidate's first sibling that is `counted` [n, N], itself included, [n, N]; N where there is none.

    Padding is nobody's sibling.
    """
    n, columns = parent.shape
    row, column = ((path_prob > 0) & counted).nonzero()  # [m], in rising order
    first = np.full((n, columns + 1), columns)  # by parent, the root's children at 0
    first[row[::-1], parent[row, column][::-1] + 1] = column[::-1]  # of several the last one written stays: the first column
    found: Ints = np.take_along_axis(first, parent + 1, 1)
    return found


def interpolated(said: Floats, row: Ints, points: Floats, estimate: Floats) -> Floats:
    """The table's estimates for what the draft said; said and row of any shape. points [P], rising; estimate [rows, P]."""
    left = np.clip(np.searchsorted(points, said, side="right") - 1, 0, len(points) - 2)
    low, high = estimate[row, left], estimate[row, left + 1]
    edge: Floats = np.clip(low + (high - low) * (said - points[left]) / (points[left + 1] - points[left]), 1e-6, 1.0)
    return edge


def calibrated(path_prob: Floats, parent: Ints, row: Ints, first: Ints, points: Floats, estimate: Floats) -> Floats:
    """f of every candidate, the product of the estimates along its path, [n, N]; 0 for padding.

    row [n, N]: each candidate's row of the table. points [P], rising: where the table's columns stand. estimate [rows, P].
    first [n, N]: the column of a sibling that a candidate is not believed more than; N for none.
    """
    n, columns = parent.shape
    above = np.zeros((n, columns + 1), dtype=np.int64)  # [n, 1 + N], the root's parent is itself
    above[:, 1:] = parent + 1
    prob = np.ones((n, columns + 1))  # [n, 1 + N], the root's is 1
    prob[:, 1:] = path_prob
    real = path_prob > 0
    said = np.divide(path_prob, np.take_along_axis(prob, above[:, 1:], 1), out=np.zeros((n, columns)), where=real)  # [n, N]
    edge = np.ones((n, columns + 1))  # [n, N + 1], the last is nobody's
    edge[:, :-1] = interpolated(said, row, points, estimate)
    bound = np.minimum(edge[:, :-1], np.take_along_axis(edge, first, 1))  # [n, N]
    prob[:, 1:] = np.where(real, bound, 0.0)
    for _ in range(columns.bit_length()):
        prob = prob * np.take_along_axis(prob, above, 1)
        above = np.take_along_axis(above, above, 1)
    return prob[:, 1:]


def largest_surplus(f: Floats, need: Floats, urgency: float, most: int, price: Floats) -> tuple[Bools, Bools]:
    """The chosen candidates, and those among them that their request needs: [n, N] each.

    need [n]: tokens that each must gain, at most depth + 1. most: nodes over all. price [K]: of 0, 1, ... nodes; empty: none.
    """
    n, columns = f.shape
    column = np.argsort(-f, axis=1, kind="stable")  # [n, N], each request's best first
    prob = np.take_along_axis(f, column, 1)[:, :MAX_NODES]  # [n, R], by rank
    before = np.ones_like(prob)  # [n, R], tokens expected without the node
    before[:, 1:] = prob[:, :-1]
    short = np.cumsum(before, 1) < need[:, None]  # [n, R]
    worth = np.where(short, prob * urgency, prob).T.ravel()  # [R * n], rank-major: of equals the request with fewer nodes first
    flat = np.argsort(-worth, kind="stable")[:most]  # [K]
    best = worth[flat]
    count = int((best > 0).sum())
    if len(price):
        surplus = np.concatenate([[0.0], np.cumsum(best)]) - price[: len(best) + 1]  # [K + 1], of the k best
        count = min(count, int(surplus.argmax()))
    total = np.bincount(flat[:count] % n, minlength=n)  # [n]
    taken = np.arange(columns) < total[:, None]  # [n, N] by rank
    for_need = taken.copy()
    for_need[:, : short.shape[1]] &= short
    chosen, slo = np.empty_like(taken), np.empty_like(taken)
    np.put_along_axis(chosen, column, taken, 1)
    np.put_along_axis(slo, column, for_need, 1)
    return chosen, slo
