"""What the profiler makes of disturbed times; measuring as a whole is in test_measure.py."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.executor.profiler import DEEP, LEAST_SHARE, further, least, never_falling

curves = st.dictionaries(st.integers(1, 512), st.floats(1e-4, 1.0), min_size=1)


@given(curves)
def test_times_never_fall_with_rows_nor_rise_above_what_was_measured(curve: dict[int, float]) -> None:
    found = never_falling(curve)
    assert found.keys() == curve.keys()
    assert all(found[fewer] <= found[more] for fewer, more in pairwise(sorted(found)))
    assert all(found[rows] <= curve[rows] for rows in curve)


@given(curves)
def test_a_curve_that_rises_stays_as_it_is(curve: dict[int, float]) -> None:
    rising = dict(zip(sorted(curve), sorted(curve.values()), strict=True))
    assert never_falling(rising) == rising


def test_one_disturbed_measurement_is_told() -> None:
    assert never_falling({4: 9.8, 8: 21.7, 12: 11.6}) == {4: 9.8, 8: 11.6, 12: 11.6}


@given(curves, st.lists(st.floats(1.0, 5.0), min_size=3, max_size=3), st.integers(0, 511))
def test_a_slow_phase_that_spares_one_round_leaves_no_trace(curve: dict[int, float], slowed: list[float], begins: int) -> None:
    """Whenever it begins and ends, as long as one round was quiet: the curve is that of the quiet machine."""
    quiet = dict(sorted(curve.items()))
    rounds = [
        {rows: t * (slowed[0] if rows >= begins else 1.0) for rows, t in quiet.items()},
        {rows: t * slowed[1] for rows, t in quiet.items()},
        quiet,
    ]
    assert least(rounds) == quiet
    assert least([{1: 2.0, 2: 3.0}, {1: 1.0}]) == {1: 1.0, 2: 3.0}


@given(curves, st.floats(LEAST_SHARE, 3.0))
def test_what_a_further_pass_takes_is_told_from_deep_speculations(curve: dict[int, float], share: float) -> None:
    first = never_falling(curve)
    deep = {rows: time * (1 + share * (DEEP - 1)) for rows, time in first.items()}
    assert further(first, deep) == pytest.approx({rows: share * time for rows, time in first.items()})


def test_a_further_pass_always_takes_some_time() -> None:
    assert further({1: 1.0}, {1: 0.9}) == {1: LEAST_SHARE}
