"""The selection of the paper's Algorithm 2, written with heaps from its description: SLO phase, then throughput phase.

Trees as in algorithm1. Ties: requests of equal need by index; nodes of one request by column; nodes of different requests in the
throughput phase by the number of nodes that the request holds, then by index.
"""

from collections.abc import Sequence
from heapq import heappop, heappush

from adaserve.step import Limits, Order
from adaserve.tree import MAX_NODES
from tests.oracles.algorithm1 import Tree


class Frontier:
    """The nodes of one tree that may be added next: those whose parent was added. The likeliest comes first."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._heap: list[tuple[float, int]] = []
        self.added: list[int] = []
        self._offer_children(-1)

    def _offer_children(self, node: int) -> None:
        for child, (f, parent) in enumerate(self._tree):
            if parent == node and f > 0:
                heappush(self._heap, (-f, child))

    def best(self) -> float | None:
        """f of the best node on offer."""
        return -self._heap[0][0] if self._heap and len(self.added) < MAX_NODES else None

    def add(self) -> float:
        """Add the best node; returns its f."""
        f, node = heappop(self._heap)
        self.added.append(node)
        self._offer_children(node)
        return -f


def algorithm2(trees: Sequence[Tree], need: Sequence[float], limits: Limits) -> tuple[list[set[int]], list[set[int]]]:
    """Return the chosen nodes of each request, and which of them the SLO phase chose."""
    frontiers = [Frontier(tree) for tree in trees]
    left = limits.nodes

    for i in served(trees, need, limits):
        gained = 1.0
        while (
            left > 0
            and gained < min(need[i], limits.depth + 1)
            and len(frontiers[i].added) < limits.per_request
            and frontiers[i].best() is not None
        ):
            gained += frontiers[i].add()
            left -= 1
    slo = [set(frontier.added) for frontier in frontiers]

    while left > 0:
        offers = [(-f, len(x.added), i) for i, x in enumerate(frontiers) if (f := x.best()) is not None]
        if not offers:
            break
        frontiers[min(offers)[2]].add()
        left -= 1
    return [set(frontier.added) for frontier in frontiers], slo


def served(trees: Sequence[Tree], need: Sequence[float], limits: Limits) -> list[int]:
    """The requests in the order of the SLO phase."""
    requests = range(len(trees))
    if limits.order is Order.EASIEST:
        return sorted(requests, key=lambda i: (need[i], i))
    if limits.order is Order.NEEDIEST:
        return sorted(requests, key=lambda i: (-need[i], i))

    def hopeless(i: int) -> bool:
        frontier, gained = Frontier(trees[i]), 1.0
        while frontier.best() is not None and len(frontier.added) < limits.per_request:
            gained += frontier.add()
        return gained < need[i]

    return sorted(requests, key=lambda i: (hopeless(i), -need[i], i))
