"""The selection of `adaserve+` in three Triton kernels. The twin, and the specification, is selection.surplus_reference.

    f, of each request's candidates -> calibrated -> ranked -> worths, by rank and request     one program a request
    worths -> places in their falling order, over all requests -> worths in that order         one program a block of worths
    sums less prices -> how many are bought -> chosen, for_need                                one program a request

All in float64. Each kernel has one variant, whatever the sizes, so that the first selection compiles all there is to compile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaserve.policy.plus.bands import WARM_UP_TO
from adaserve.policy.plus.calibration import BIRTHS, CELLS, DEPTHS, ROWS, Calibration
from adaserve.purse import Purse, Selected
from adaserve.tree import MAX_NODES, CandidateTree, Source

COLUMNS = 128
"""The most candidates of a request."""

MOST_WORTHS = 16_384
"""Each is compared with all the others, so a sort is faster beyond some number."""

_FEW = 16
"""Candidates that those of a request are compared with at once: all together would not fit the registers."""
_BLOCK = 32
"""Worths that a program finds the places of."""
_OTHERS = 64
"""Worths that it compares them with at once."""
_SUMS = 512
"""Worths that are summed at once."""

_MODEL, _NGRAM = tl.constexpr(int(Source.MODEL)), tl.constexpr(int(Source.NGRAM))
_BIRTHS, _DEPTHS, _ROWS, _POINTS = tl.constexpr(BIRTHS), tl.constexpr(DEPTHS), tl.constexpr(ROWS), tl.constexpr(CELLS + 2)
_WARM = tl.constexpr(WARM_UP_TO)


@triton.jit
def _of_parent(x, parent, root):
    """The x [C] of every column's parent, and of the root's children `root`."""
    return tl.where(parent < 0, root, tl.gather(x, tl.maximum(parent, 0), 0))


@triton.jit
def _first_sibling(path_prob, parent, source, columns, above, C: tl.constexpr, OTHERS: tl.constexpr):
    """The first column that counts among the children of each of `above` [C]; C where there is none."""
    first = tl.full((C, OTHERS), C, tl.int32)
    for start in range(0, columns, OTHERS):
        other = start + tl.arange(0, OTHERS)
        there = other < columns
        counted = there & (tl.load(path_prob + other, mask=there, other=0.0) > 0.0)
        counted = counted & (tl.load(source + other, mask=there, other=_NGRAM) != _NGRAM)
        family = tl.load(parent + other, mask=there, other=0).to(tl.int32)
        sibling = counted[None, :] & (family[None, :] == above[:, None])
        first = tl.minimum(first, tl.where(sibling, other[None, :], C))
    return tl.min(first, axis=1)


@triton.jit
def _calibrated(
    f, path_prob, parent, depth, source, temperature, points, estimate, columns,
    C: tl.constexpr, ROUNDS: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """Calibration.__call__ for the candidates of one request, whose fields begin at the pointers. f [C]: what the draft says."""
    column, real = tl.arange(0, C), f > 0.0
    live = column < columns
    above = tl.load(parent + column, mask=live, other=-1).to(tl.int32)
    by = tl.load(source + column, mask=live, other=0).to(tl.int32)
    deep = tl.minimum(tl.maximum(tl.load(depth + column, mask=live, other=1).to(tl.int32), 1), _DEPTHS)
    first = tl.where(by == _MODEL, _first_sibling(path_prob, parent, source, columns, above, C, OTHERS), column)
    heat = tl.load(temperature)
    warmth = (heat > 0.0).to(tl.int32) + (heat > _WARM).to(tl.int32)
    row = by * (_DEPTHS * _BIRTHS) + deep * _BIRTHS + (warmth * _ROWS - _BIRTHS) + (first < column).to(tl.int32)

    said = tl.where(real, f / tl.load(path_prob + above, mask=real & (above >= 0), other=1.0), 0.0)
    left = column * 0 - 1
    for point in range(_POINTS):
        left += (tl.load(points + point) <= said).to(tl.int32)
    left = tl.minimum(tl.maximum(left, 0), _POINTS - 2)
    below = estimate + row * _POINTS + left
    low, high = tl.load(below), tl.load(below + 1)
    start, end = tl.load(points + left), tl.load(points + left + 1)
    edge = low + (high - low) * (said - start) / (end - start)
    eldest = tl.gather(edge, tl.minimum(first, C - 1), 0)
    edge = tl.minimum(edge, tl.where(first < C, eldest, 1.0))

    # As calibration._along_paths multiplies: every round doubles how far up the path a product reaches.
    prob = tl.where(real, edge, 0.0)
    for _ in range(ROUNDS):
        prob = prob * _of_parent(prob, above, 1.0)
        above = _of_parent(above, above, -1)
    return prob


@triton.jit(
    do_not_specialize=["columns", "ranks", "deepest"],
    do_not_specialize_on_alignment=[
        "path_prob", "parent", "depth", "source", "need", "temperature", "points", "estimate",
        "believed", "ranked", "worth", "standing", "met",
    ],
)  # fmt: skip
def _worth_kernel(
    path_prob, parent, depth, source, need, temperature, points, estimate, believed, ranked, worth, standing, met,
    columns, ranks, deepest, URGENCY: tl.constexpr, C: tl.constexpr, ROUNDS: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    request, requests = tl.program_id(0), tl.num_programs(0)
    column, begin = tl.arange(0, C), request * columns
    live, at = column < columns, begin + column
    f = tl.load(path_prob + at, mask=live, other=0.0)
    if points is not None:
        fields = path_prob + begin, parent + begin, depth + begin, source + begin
        f = _calibrated(f, *fields, temperature + request, points, estimate, columns, C, ROUNDS, OTHERS)
        tl.store(believed + at, f, mask=live)
        tl.debug_barrier()  # what one thread has written others read

    # A candidate's rank is the number of those that are better, or as good and come earlier.
    better = tl.zeros((C, OTHERS), tl.int32)
    for start in range(0, columns, OTHERS):
        others = start + tl.arange(0, OTHERS)
        other = tl.load(believed + begin + others, mask=others < columns, other=-1.0)
        equal = (other[None, :] == f[:, None]) & (others[None, :] < column[:, None])
        better += ((other[None, :] > f[:, None]) | equal).to(tl.int32)
    rank = tl.sum(better, axis=1)
    tl.store(standing + at, rank, mask=live)
    tl.store(ranked + begin + rank, f, mask=live)
    tl.debug_barrier()

    # From here on lanes are ranks.
    allowed = column < ranks
    prob = tl.load(ranked + at, mask=allowed, other=0.0)
    gained = tl.load(ranked + at - 1, mask=allowed & (column > 0), other=0.0)
    before = tl.cumsum(tl.where(column == 0, 1.0, gained), axis=0)
    wanted = tl.minimum(tl.load(need + request), (deepest + 1).to(tl.float64))
    short = allowed & (before < wanted)
    tl.store(worth + column * requests + request, tl.where(short, prob * URGENCY, prob), mask=allowed)
    tl.store(met + request, tl.sum(short.to(tl.int32), axis=0))  # up to rounding the first ranks, as f is never below 0


@triton.jit(do_not_specialize=["count", "kept"], do_not_specialize_on_alignment=["worth", "place", "best"])
def _place_kernel(worth, place, best, count, kept, BLOCK: tl.constexpr, OTHERS: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(worth + index, mask=index < count, other=-1.0)
    better = tl.zeros((BLOCK, OTHERS), tl.int32)
    for start in range(0, count, OTHERS):
        others = start + tl.arange(0, OTHERS)
        other = tl.load(worth + others, mask=others < count, other=-1.0)
        # Worths stand rank-major: of equals the request with fewer nodes comes first.
        equal = (other[None, :] == own[:, None]) & (others[None, :] < index[:, None])
        better += ((other[None, :] > own[:, None]) | equal).to(tl.int32)
    found = tl.sum(better, axis=1)
    tl.store(place + index, found, mask=index < count)
    tl.store(best + found, own, mask=(index < count) & (found < kept))


@triton.jit(
    do_not_specialize=["columns", "ranks", "kept", "priced"],
    do_not_specialize_on_alignment=["standing", "met", "place", "worth", "best", "price", "nodes", "chosen", "for_need"],
)
def _buy_kernel(
    standing, met, place, worth, best, price, nodes, chosen, for_need,
    columns, ranks, kept, priced, C: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    request, requests = tl.program_id(0), tl.num_programs(0)
    most = tl.minimum(tl.load(nodes), kept.to(tl.int64)).to(tl.int32)
    if priced:
        # Every program finds how many nodes have the largest surplus, fewer of equals: as the host's largest_surplus does.
        total, number = tl.full((), 0.0, tl.float64), tl.full((), 0, tl.int32)
        largest = total - tl.load(price)
        for start in range(0, kept, SUMS):
            index = start + tl.arange(0, SUMS)
            live = index < kept
            paid = tl.load(best + index, mask=live, other=0.0)
            totals = tl.cumsum(tl.where(index == start, total + paid, paid), axis=0)  # on a GPU in another order than the twin's
            surplus = tl.where(live, totals - tl.load(price + 1 + index, mask=live, other=0.0), float("-inf"))
            highest = tl.max(surplus, axis=0)
            earliest = tl.min(tl.where(surplus == highest, index, kept), axis=0)
            number = tl.where(highest > largest, earliest + 1, number)
            largest = tl.maximum(largest, highest)
            total = tl.max(totals, axis=0)  # the last, up to rounding: worths are never below 0
        most = tl.minimum(most, number)

    column = tl.arange(0, C)
    live, at = column < columns, request * columns + column
    rank = tl.load(standing + at, mask=live, other=0)
    offered = live & (rank < ranks)
    cell = rank * requests + request
    bought = offered & (tl.load(place + cell, mask=offered, other=0) < most)
    bought = bought & (tl.load(worth + cell, mask=offered, other=0.0) > 0.0)
    total_bought = tl.sum(bought.to(tl.int32), axis=0)
    tl.store(chosen + at, (rank < total_bought).to(tl.uint8), mask=live)
    tl.store(for_need + at, (rank < tl.minimum(total_bought, tl.load(met + request))).to(tl.uint8), mask=live)


def able(requests: int, columns: int) -> bool:
    """Whether the kernels take so many candidates of so many requests."""
    return 0 < columns <= COLUMNS and requests * min(columns, MAX_NODES) <= MOST_WORTHS


def surplus(
    candidates: CandidateTree, need: Tensor, purse: Purse, temperature: Tensor, urgency: float, calibration: Calibration | None
) -> Selected:
    """Arguments and result as of selection.surplus_reference; n and purse.most must be above 0, and `able` of N."""
    (n, columns), device = candidates.path_prob.shape, candidates.path_prob.device
    ranks = min(columns, MAX_NODES)
    count = ranks * n
    kept = min(purse.most, count)
    fields = [x.contiguous() for x in (candidates.path_prob, candidates.parent, candidates.depth, candidates.source)]
    points, estimate = (None, None) if calibration is None else calibration.held_on(device)
    sizes = [n * columns, n * columns, count, kept]
    believed, ranked, worth, best = torch.empty(sum(sizes), dtype=torch.float64, device=device).split(sizes)
    numbers = torch.empty(n * columns + n + count, dtype=torch.int32, device=device)
    standing, met, place = numbers.split([n * columns, n, count])  # each candidate's rank; [n] ranks short of need; [R * n]
    chosen, for_need = torch.empty(2, n, columns, dtype=torch.uint8, device=device)  # [n, N] each
    _worth_kernel[(n,)](
        *fields, need, temperature, points, estimate, fields[0] if points is None else believed, ranked, worth, standing, met,
        columns, ranks, purse.depth, urgency, COLUMNS, (COLUMNS - 1).bit_length(), _FEW,
    )  # fmt: skip
    _place_kernel[(triton.cdiv(count, _BLOCK),)](worth, place, best, count, kept, _BLOCK, _OTHERS)
    _buy_kernel[(n,)](
        standing, met, place, worth, best, purse.price, purse.nodes, chosen, for_need,
        columns, ranks, kept, int(purse.price.shape[0] > 0), COLUMNS, _SUMS,
    )  # fmt: skip
    return Selected(chosen.view(torch.bool), for_need.view(torch.bool))
