"""The selection of `adaserve+` for candidates in the host's memory: plain numbers instead of tensors, to the same result.

Between two passes of a model nothing of ours is left in the processor's caches, so what an operation costs is mostly the way to
its code: 50 us for the first small tensor made of numbers, 20 us for the first operation on an array, next to nothing for the
second one of its kind. A dozen requests have a hundred candidates at most. Loops over those need no code but the interpreter's,
which is in use all the time.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from adaserve.tree import MAX_NODES, Source

MODEL, NGRAM = int(Source.MODEL), int(Source.NGRAM)


@dataclass(frozen=True)
class Estimates:
    """A table of estimates, linear between its points.

    points [P], rising: what a draft may say, 0 and 1 among it. value [rows * P].
    """

    points: Sequence[float]
    value: Sequence[float]

    def __call__(self, said: float, row: int) -> float:
        """The estimate of one of the table's rows for what a draft said."""
        points = self.points
        left = bisect_right(points, said, 1, len(points) - 1) - 1
        below = row * len(points) + left
        low = self.value[below]
        return low + (self.value[below + 1] - low) * (said - points[left]) / (points[left + 1] - points[left])


def calibrated(
    parents: Sequence[Sequence[int]],
    depths: Sequence[Sequence[int]],
    probs: Sequence[Sequence[float]],
    sources: Sequence[Sequence[int]],
    tables: Sequence[Sequence[Sequence[int]]],
    estimates: Estimates,
) -> list[list[float]]:
    """f of every candidate, the product of the estimates along its path, [n, N]; 0 for padding.

    parents, depths, probs (f as the draft says), sources [n, N]: of a CandidateTree, N > 0. tables [n]: by source and depth, the
    row of the table for the first child of its parent; a later one's follows it.
    """
    points, value = estimates.points, estimates.value
    size, last = len(points), len(points) - 1
    edges: list[float] = []  # of all requests, one after the other
    up: list[int] = []  # each one's parent there; -1 for a root
    for parent, depth, prob, source, rows in zip(parents, depths, probs, sources, tables, strict=True):
        begin = len(edges)
        said = [*prob, 1.0]  # a root's children have it above them at -1
        first: dict[int, float] = {}  # by the parent, its first child's edge; what look-up alone proposed is nobody's sibling
        for above, deep, f, by in zip(parent, depth, prob, source, strict=True):
            up.append(begin + above if above >= 0 else -1)
            if f <= 0.0:
                edges.append(0.0)
                continue
            say = f / said[above]
            left = bisect_right(points, say, 1, last) - 1
            below = rows[by][deep] * size + left
            eldest = first.get(above)
            later = eldest is not None and by == MODEL
            if later:
                below += size
            low = value[below]  # as Estimates.__call__, without the call
            edge = low + (value[below + 1] - low) * (say - points[left]) / (points[left + 1] - points[left])
            if eldest is None:
                if by != NGRAM:
                    first[above] = edge
            elif later and eldest < edge:
                edge = eldest
            edges.append(edge)
    found = _along_paths(edges, up)
    columns = len(probs[0])
    return [found[begin : begin + columns] for begin in range(0, len(found), columns)]


def _along_paths(edge: list[float], up: list[int]) -> list[float]:
    """The product of edges from the root to every node; up: each one's parent. Multiplied in the order of its twin in tensors."""
    prob, up = [*edge, 1.0], [*up, -1]  # the root stands at the end, and is its own parent
    while max(up) >= 0:
        prob = [own * prob[above] for own, above in zip(prob, up, strict=True)]
        up = [up[above] for above in up]
    prob.pop()
    return prob


def largest_surplus(
    trees: Sequence[Sequence[float]], need: Sequence[float], urgency: float, most: int, price: Sequence[float]
) -> tuple[list[int], list[int]]:
    """The chosen candidates as flat cells, and those among them that their request needs.

    trees [n, N]: f of each request's candidates. need [n]: tokens that each must gain, at most depth + 1. most: nodes over all.
    price: of 0, 1, ... nodes; empty: none.
    """
    n, columns = len(trees), len(trees[0])
    ranked: list[list[int]] = []  # each request's columns, the best first
    worths: list[list[float]] = []
    met: list[int] = []  # the rank from which on a request is no longer short of its need
    for f, wanted in zip(trees, need, strict=True):
        order = sorted(range(columns), key=f.__getitem__, reverse=True)[:MAX_NODES]
        worth = [f[column] for column in order]
        short = 0
        if wanted > 1.0:
            short = sum(gained < wanted for gained in accumulate(worth[:-1], initial=1.0))
            worth[:short] = [urgency * x for x in worth[:short]]
        ranked.append(order)
        worths.append(worth)
        met.append(short)
    # Rank-major: of equals the request with fewer nodes first. Worth never rises with rank, so the best nodes of all are each
    # request's best: connected trees.
    offers = [worth for rank in zip(*worths, strict=True) for worth in rank]
    best = sorted(range(len(offers)), key=offers.__getitem__, reverse=True)[:most]
    count = _largest([offers[at] for at in best], price) if price else len(best)
    chosen, for_need = [], []
    for at in best[:count]:
        if offers[at] <= 0.0:
            break
        rank, request = divmod(at, n)
        cell = request * columns + ranked[request][rank]
        chosen.append(cell)
        if rank < met[request]:
            for_need.append(cell)
    return chosen, for_need


def _largest(worth: Sequence[float], price: Sequence[float]) -> int:
    """How many of the best nodes have the largest surplus over their price."""
    count, most = 0, -price[0]
    for bought, total in enumerate(accumulate(worth), 1):
        surplus = total - price[bought]
        if surplus > most:
            count, most = bought, surplus
    return count
