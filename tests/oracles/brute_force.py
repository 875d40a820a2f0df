"""The best trees by trying all of them; for tiny trees only."""

from collections.abc import Iterator, Sequence
from itertools import product

from tests.oracles.algorithm1 import Tree


def connected_subsets(tree: Tree) -> Iterator[frozenset[int]]:
    """All sets of real nodes that contain the parent of each of their nodes."""
    subsets = [frozenset[int]()]
    for node, (f, parent) in enumerate(tree):  # parents come first
        if f > 0:
            subsets += [s | {node} for s in subsets if parent == -1 or parent in s]
    yield from subsets


def brute_force(trees: Sequence[Tree], need: Sequence[float], budget: int) -> float | None:
    """The largest expected number of tokens that meets all needs with at most `budget` rows, or None where there is none."""
    options = []  # per request: size and gain of every tree that meets its need
    for tree, wanted in zip(trees, need, strict=True):
        gains = [(1 + len(s), 1.0 + sum(tree[v][0] for v in s)) for s in connected_subsets(tree)]
        options.append([(rows, gain) for rows, gain in gains if gain >= wanted])
    sums = [sum(gain for _, gain in pick) for pick in product(*options) if sum(rows for rows, _ in pick) <= budget]
    return max(sums, default=None)
