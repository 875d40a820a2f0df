"""Slack: how long steps may take for whose sake, what first tokens are worth, and which requests cannot attain any more."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from adaserve.latency import LatencyModel
from adaserve.metrics import TTFT_LIMIT_PER_BASELINE
from adaserve.request import RequestState


def bearable(state: RequestState, now: float, gain: float, aim: float) -> float | None:
    """How long a step may take for the sake of a request that gains `gain` tokens in it; None without a target.

    Either it is on target after the step, or it attains if every step until its end takes as long: whether it attains is settled
    there, so who has fallen behind makes up for it over all that is left.
    """
    request, since = state.request, state.decoding_since
    tpot = request.targets.tpot
    if tpot is None or since is None:
        return None
    remaining, pace = state.remaining, aim * tpot
    # No calls of min and max: this is asked of every request in every step.
    left = remaining if remaining > 1 else 1
    gain = left if left < gain else gain
    ahead = pace * (request.sampling.max_tokens - remaining - 1) - (now - since)
    spread = gain * ahead / left
    return gain * pace + (spread if spread > ahead else ahead)


def strained(states: Iterable[RequestState], now: float, base: float, gain: float, aim: float) -> list[tuple[float, float]]:
    """What those that have a target can bear beside a step of `base` seconds, and how much of its way the step is for each."""
    found = []
    for state in states:
        most = bearable(state, now, gain, aim)
        if most is not None:
            left = state.remaining
            found.append((most - base, gain / left if gain < left else 1.0))
    return found


def is_lost(state: RequestState, now: float, pace: float | None) -> bool:
    """Whether a request will miss its target even if from now on every token takes it only `pace` seconds."""
    request, since = state.request, state.decoding_since
    tpot = request.targets.tpot
    if tpot is None or since is None or pace is None:
        return False
    return now - since + state.remaining * pace > tpot * (request.sampling.max_tokens - 1)


def first_token_due(state: RequestState, baseline: float) -> float:
    """When a request's first token must have come: its target, and at the latest when nobody waits that long."""
    limit = TTFT_LIMIT_PER_BASELINE * baseline
    ttft = state.request.targets.ttft
    return state.request.arrived + (limit if ttft is None else min(ttft, limit))


def waited(backlog: Sequence[RequestState], now: float, baseline: float) -> float:
    """The largest share, 0 to 1, that a first token of the backlog has used up of its time; who is late anyway presses nobody."""
    shares = (
        (now - s.request.arrived) / (due - s.request.arrived) for s in backlog if (due := first_token_due(s, baseline)) > now
    )
    return max(0.0, max(shares, default=0.0))


def best_chunk(costs: NDArray[np.float64], slack: Sequence[tuple[float, float]], row_worth: float) -> int:
    """The number of prompt rows that brings most requests in time, less those that it makes late; the larger of equals.

    costs: seconds that 0, 1, ... prompt rows add to the step, from 0, never falling. slack: for each running request the
    seconds that it can bear, and what it counts if they are exceeded. row_worth: what a row counts.
    """
    most, longest = len(costs) - 1, float(costs[-1])
    # Who bears all of them is never late; who is behind may be favoured and catch up.
    order = sorted([(max(seconds, 0.0), share) for seconds, share in slack if seconds < longest])
    borne = costs.searchsorted([seconds for seconds, _ in order], side="right") - 1
    best, found, late = 0.0, 0, 0.0
    for rows, (_, share) in zip((*borne.tolist(), most), (*order, (math.inf, 0.0)), strict=True):  # fewer rows bring no more
        surplus = row_worth * rows - late
        if surplus >= best:
            best, found = surplus, rows
        late += share
    return found


def paying_rows(latency: LatencyModel, rows: int, worth: float, unit: float, enough: int, most: int) -> int:
    """The number of prompt rows, of `most` at most, with the largest surplus beside `rows` others; `enough` for any from that on.

    worth: of a prompt row, in tokens. unit: seconds that a token is worth.
    """
    surplus = worth * np.arange(most + 1) - latency.added_by_prompts(rows, most, unit)
    return min(enough, int(surplus.argmax()))


def thrifty(costs: NDArray[np.float64], wished: int, part: float, nearly: float) -> int:
    """The largest number of prompt rows, at least that part of those wished, whose rows are about as cheap as they come.

    The first rows beyond a tile of a matrix unit, or a graph's size, cost what all the next ones do: they are left for a step
    that takes more of them. costs: as in best_chunk, of `wished` rows and fewer. nearly: times the least cost of a row that one
    may have and still count as cheap.
    """
    if not wished:
        return 0
    least = max(1, math.ceil(part * wished))
    each = costs[least : wished + 1] / np.arange(least, wished + 1)
    return least + int(np.flatnonzero(each <= nearly * each.min())[-1])
