"""Slack: what running requests can bear, whom chunks of prompts save, and who is lost."""

from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.latency import LatencyModel
from adaserve.policy.plus.slack import bearable, best_chunk, first_token_due, is_lost, paying_rows, strained, thrifty, waited
from tests.profiles import STEEP
from tests.scheduling.steps import decoding, waiting


def test_who_is_ahead_can_bear_a_step_until_it_is_late() -> None:
    """Three tokens at 10 ms, 5 ms gone, two to come of the step: 40 - 5 ms."""
    assert bearable(decoding("a", produced=3, tpot=0.010), 0.005, 2.0, 1.0) == pytest.approx(0.035)
    assert bearable(decoding("b"), 1.0, 1.0, 1.0) is None


@given(st.integers(1, 7), st.floats(0.0, 0.2), st.floats(1.0, 4.0))
def test_who_is_behind_bears_steps_that_still_bring_it_to_its_target(produced: int, behind: float, gain: float) -> None:
    state = decoding("a", produced=produced, tpot=0.010)
    now = 0.010 * (produced - 1) + behind
    seconds = bearable(state, now, gain, 1.0)
    assert seconds is not None
    assert now + state.remaining / min(gain, state.remaining) * seconds == pytest.approx(
        0.010 * (state.produced - 1 + state.remaining)
    )


@given(
    st.lists(st.floats(0.0, 1.0), max_size=30),
    st.lists(st.tuples(st.floats(-5.0, 20.0), st.floats(0.0, 1.0)), max_size=8),
    st.floats(0.0, 0.5),
)
def test_a_chunk_brings_most_in_time_of_all_sizes(steps: list[float], strained: list[tuple[float, float]], worth: float) -> None:
    costs = np.array([0.0, *accumulate(steps)])

    def surplus(rows: int) -> float:
        return worth * rows - sum(share for most, share in strained if max(most, 0.0) < costs[rows])

    found = best_chunk(costs, strained, worth)
    assert all(surplus(found) >= surplus(rows) - 1e-9 for rows in range(len(costs)))
    calm = best_chunk(costs, strained, 0.0)  # no first token presses: as much as nobody feels
    assert all(share < 1e-9 or max(most, 0.0) >= costs[calm] for most, share in strained)


@given(
    st.integers(1, 60), st.floats(0.0, 1.0), st.floats(1e-4, 1e-2), st.integers(0, 200), st.integers(0, 200), st.floats(0.0, 4.0)
)
def test_no_number_of_prompt_rows_pays_better(rows: int, worth: float, unit: float, enough: int, more: int, saved: float) -> None:
    latency = LatencyModel(replace(STEEP, prompt_saves_ms_by_rows={1: 0.0, 64: saved}))
    surplus = [worth * k - price for k, price in enumerate(latency.added_by_prompts(rows, enough + more, unit).tolist())]
    assert paying_rows(latency, rows, worth, unit, enough, enough + more) == min(enough, surplus.index(max(surplus)))


def test_slack_is_of_those_who_have_a_target_and_never_more_than_their_whole_way() -> None:
    """What is borne less the step itself; a step may be all that is left of a request's way, and is never more."""
    near, far, free = decoding("near", produced=7, tpot=0.010), decoding("far", produced=3, tpot=0.010), decoding("free")
    first, second = strained([near, free, far], 0.005, 0.002, 2.0, 1.0)
    assert first == (bearable(near, 0.005, 2.0, 1.0) - 0.002, 1.0)
    assert second == (bearable(far, 0.005, 2.0, 1.0) - 0.002, 2.0 / far.remaining)


def test_lost_is_who_cannot_make_it_at_the_best_pace() -> None:
    state = decoding("a", produced=3, tpot=0.010)  # five of eight tokens still to come; the seven after the first have 70 ms
    assert not is_lost(state, 0.044, 0.005)
    assert is_lost(state, 0.046, 0.005)
    assert not is_lost(state, 9.9, None)
    assert not is_lost(decoding("b", produced=3), 9.9, 0.005)


def test_first_tokens_press_more_and_more_until_they_are_late() -> None:
    baseline = 0.003  # nobody waits more than a second
    early, late = waiting("a", prompt=30, arrived=0.0), waiting("b", prompt=50, arrived=-5.0)
    assert first_token_due(early, baseline) == pytest.approx(1.0)
    assert [waited([early, late], now, baseline) for now in (0.0, 0.1, 0.9)] == pytest.approx([0.0, 0.1, 0.9])
    assert waited([late], 0.1, baseline) == waited([], 0.1, baseline) == 0.0


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=60), st.integers(0, 60))
def test_a_thrifty_chunk_takes_half_at_least_and_no_dear_rows(added: list[float], wished: int) -> None:
    costs = np.array([0.0, *accumulate(added)])
    wished = min(wished, len(added))
    found = thrifty(costs, wished, 0.5, 1.1)
    assert wished / 2 <= found <= wished
    if found:
        assert all(costs[found] / found <= 1.1 * costs[k] / k * (1 + 1e-9) for k in range(-(-wished // 2), wished + 1))


def test_a_thrifty_chunk_stops_at_a_tile() -> None:
    """The row after the thirteenth costs as much as four others."""
    costs = np.array([0.35 * rows + (1.4 if rows > 13 else 0.0) for rows in range(30)])
    assert [thrifty(costs, wished, 0.5, 1.1) for wished in (0, 1, 12, 13, 16, 20, 29)] == [0, 1, 12, 13, 13, 13, 29]
