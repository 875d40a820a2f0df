"""Algorithm 2 for candidates in the host's memory: plain numbers instead of tensors, to the same result.

Why that is quicker: see policy/plus/host.py.
"""

from collections.abc import Sequence
from itertools import accumulate

from adaserve.step import Limits, Order
from adaserve.tree import MAX_NODES


def by_algorithm2(trees: Sequence[Sequence[float]], need: Sequence[float], limits: Limits) -> tuple[list[int], list[int]]:
    """The chosen candidates as flat cells, and those among them that the SLO phase chose.

    trees [n, N]: f of each request's candidates, N > 0. need [n]: A_i.
    """
    columns = len(trees[0])
    ranked = [sorted(range(columns), key=f.__getitem__, reverse=True)[:MAX_NODES] for f in trees]  # the best first
    prob = [[f[column] for column in order] for f, order in zip(trees, ranked, strict=True)]
    nodes = max(limits.nodes, 0)
    taken = _slo_counts(prob, need, limits, nodes)
    total = [sum(f > 0.0 for f in mine) for mine in prob]
    if sum(total) > nodes:
        total = _with_throughput(prob, taken, nodes)
    return _cells(ranked, total, columns), _cells(ranked, taken, columns)


def _cells(ranked: Sequence[Sequence[int]], count: Sequence[int], columns: int) -> list[int]:
    mine = enumerate(zip(ranked, count, strict=True))
    return [request * columns + column for request, (order, most) in mine for column in order[:most]]


def _slo_counts(prob: Sequence[Sequence[float]], need: Sequence[float], limits: Limits, nodes: int) -> list[int]:
    """How many of its best candidates each request gets in the SLO phase."""
    most = max(limits.per_request, 0)
    wanted = []
    hopeless = []  # those who miss their target whatever the others do
    for mine, tokens in zip(prob, need, strict=True):
        target = min(tokens, limits.depth + 1)
        count, gained = 0, 1.0
        for f in mine[:most]:
            if not (gained < target and f > 0.0):
                break
            count += 1
            gained += f
        wanted.append(count)
        hopeless.append(limits.order is Order.ATTAINABLE and list(accumulate(mine[:most], initial=1.0))[-1] < tokens)
    order = sorted(range(len(prob)), key=need.__getitem__, reverse=limits.order is not Order.EASIEST)
    order.sort(key=hopeless.__getitem__)
    taken = [0] * len(prob)
    for request in order:
        taken[request] = min(wanted[request], nodes)
        nodes -= taken[request]
    return taken


def _with_throughput(prob: Sequence[Sequence[float]], taken: Sequence[int], nodes: int) -> list[int]:
    """How many nodes each request has after the throughput phase: the best of the rest until all are spent."""
    n = len(prob)
    # Rank-major, so that of equals the request with fewer nodes comes first.
    rest = [mine[rank] if rank >= taken[i] else 0.0 for rank in range(len(prob[0])) for i, mine in enumerate(prob)]
    total = list(taken)
    for at in sorted(range(len(rest)), key=rest.__getitem__, reverse=True)[: nodes - sum(taken)]:
        if rest[at] <= 0.0:
            break
        total[at % n] += 1
    return total
