"""Capacity: the highest load at which a stated share of requests attains, found by bisection on a grid of loads.

The grid is the same for every search: 1.05^k, rounded to three digits. So policies are probed at the same loads, and a search
that was interrupted finds its earlier probes again.

    speed      ... 0.907  0.952   1   1.05  1.1  1.16  1.22 ...
    attains         yes    yes   yes        no          no          the search: gallop until the answer changes, then bisect

Attainment is assumed to fall with the load. Where a noisy one does not, the answer is still a load that was probed and attained
whose next higher neighbour on the grid was probed and did not.
"""

import math
from collections.abc import Callable, Sequence

RATIO = 1.05
LEAST, MOST = 1e-3, 1e3


def grid_speed(index: int) -> float:
    """The load at a place of the grid; place 0 is the trace's own rate."""
    speed = RATIO**index
    return round(speed, 2 - math.floor(math.log10(speed)))


def grid_index(speed: float) -> int:
    """The place of the grid that is nearest to a load. Raises ValueError for a load that is not positive."""
    if not 0 < speed < math.inf:
        raise ValueError(f"a load must be a finite positive number, got {speed}")
    return round(math.log(speed) / math.log(RATIO))


def capacity(
    attainment_at: Callable[[float], float | None],
    goals: Sequence[float],
    start: float = 1.0,
    least: float = LEAST,
    most: float = MOST,
) -> dict[float, float | None]:
    """Find, for each goal, the highest load on the grid at which the attainment reaches it; None if none from `least` on does.

    attainment_at: the share of requests that attain at a load; called once for each load that it takes. None: the probe was cut
    short, which ends the search, and goals that are not settled by then are left out.
    start: where to look first. least, most: bounds of the search; at `most` the answer is `most`.
    """
    low, high = grid_index(least), grid_index(most)
    probed: dict[int, float] = {}
    found: dict[float, float | None] = {}
    for goal in sorted(goals):
        try:
            index = _highest(lambda place: _probe(place, attainment_at, probed), goal, probed, grid_index(start), low, high)
        except _CutShort:
            break
        found[goal] = None if index is None else grid_speed(index)
    return found


class _CutShort(Exception):
    """A probe was cut short."""


def _probe(place: int, attainment_at: Callable[[float], float | None], probed: dict[int, float]) -> float:
    if place not in probed:
        share = attainment_at(grid_speed(place))
        if share is None:
            raise _CutShort
        probed[place] = share
    return probed[place]


def _highest(probe: Callable[[int], float], goal: float, probed: dict[int, float], start: int, low: int, high: int) -> int | None:
    """The place below the lowest one known to fail, once it is known to attain; None if `low` fails."""
    failing = min((place for place, share in probed.items() if share < goal), default=None)
    attaining = max((p for p, share in probed.items() if share >= goal and (failing is None or p < failing)), default=None)
    stride = 1
    place = min(max(start, low), high)
    while attaining is None or failing is None:
        if attaining is not None:
            place = min(attaining + stride, high)
        elif failing is not None:
            place = max(failing - stride, low)
        if probe(place) >= goal:
            if place == high:
                return high
            attaining = place
        else:
            if place == low:
                return None
            failing = place
        stride *= 2
    while failing - attaining > 1:
        middle = (attaining + failing) // 2
        if probe(middle) >= goal:
            attaining = middle
        else:
            failing = middle
    return attaining
