"""Slack: how long the coming step may take, and which requests cannot attain any more."""

from collections.abc import Sequence

from adaserve.metrics import TTFT_LIMIT_PER_BASELINE
from adaserve.request import RequestState

CREDIT = 0.25
"""How much of the time that a request can still win back may be spent in advance."""


def allowed(state: RequestState, now: float, gain: float, aim: float, usual: float) -> float | None:
    """How long the step may take for the sake of a request that gains `gain` tokens in it; None without a target.

    It should be on target afterwards, or be able to make up for the delay: as long as a token usually takes `usual` seconds,
    less than the `aim` share of its target, each of the tokens still to come wins some time back. CREDIT of that is lent.
    """
    tpot = state.request.targets.tpot
    if tpot is None or state.decoding_since is None:
        return None
    on_target = aim * tpot * (state.produced - 1 + gain) - (now - state.decoding_since)
    return on_target + CREDIT * state.remaining * max(0.0, aim * tpot - usual)


def is_lost(state: RequestState, now: float, pace: float | None) -> bool:
    """Whether a request will miss its target even if from now on every token takes it only `pace` seconds."""
    tpot = state.request.targets.tpot
    if tpot is None or state.decoding_since is None or pace is None:
        return False
    left = state.remaining
    return now - state.decoding_since + left * pace > tpot * (state.produced - 1 + left)


def first_token_due(state: RequestState, baseline: float) -> float:
    """When a request's first token must have come: its target, and at the latest when nobody waits that long."""
    limit = TTFT_LIMIT_PER_BASELINE * baseline
    ttft = state.request.targets.ttft
    return state.request.arrived + (limit if ttft is None else min(ttft, limit))


def rows_due(backlog: Sequence[RequestState], now: float, baseline: float, wait_share: float) -> float:
    """Prompt rows a second that bring every first token of the backlog in time, in the order given.

    wait_share: the share of the time allowed at which they should come. Those that come too late anyway press nobody.
    """
    rows, rate = 0, 0.0
    for state in backlog:
        rows += len(state.tokens) - state.computed
        due = first_token_due(state, baseline)
        if due <= now:
            continue
        aim = state.request.arrived + wait_share * (due - state.request.arrived)
        rate = max(rate, rows / max(aim - now, 0.1 * (due - now)))
    return rate
