"""The paper's Algorithm 1, literally: the optimal trees when f is known. Slow, small and obvious.

A tree is a list of its nodes' (f, parent), parent being an index in the list or -1 for children of the root; f = 0 is padding.
"""

from collections.abc import Sequence

Tree = Sequence[tuple[float, int]]


def algorithm1(trees: Sequence[Tree], need: Sequence[float], budget: int) -> list[set[int]] | None:
    """Return the chosen nodes of each request, or None (the paper's INVALID) when the needs cannot be met within the budget.

    budget: rows over all requests, roots included.
    """
    chosen: list[set[int]] = [set() for _ in trees]
    left = budget - len(trees)  # the roots
    if left < 0:
        return None
    for i, tree in enumerate(trees):
        gained = 1.0
        while gained < need[i]:
            best = _best(tree, chosen[i])
            if best is None or left == 0:
                return None
            chosen[i].add(best)
            gained += tree[best][0]
            left -= 1
    for _ in range(left):
        offers = [(-tree[best][0], i, best) for i, tree in enumerate(trees) if (best := _best(tree, chosen[i])) is not None]
        if not offers:
            break
        _, i, best = min(offers)
        chosen[i].add(best)
    return chosen


def total(trees: Sequence[Tree], chosen: Sequence[set[int]]) -> float:
    """The objective: expected tokens over all requests."""
    return sum(1.0 + sum(tree[v][0] for v in nodes) for tree, nodes in zip(trees, chosen, strict=True))


def _best(tree: Tree, taken: set[int]) -> int | None:
    """The likeliest node not taken yet; of equals the first."""
    rest = [v for v, (f, _) in enumerate(tree) if v not in taken and f > 0]
    return min(rest, key=lambda v: (-tree[v][0], v), default=None)
