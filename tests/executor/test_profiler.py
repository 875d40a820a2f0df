"""What the profiler makes of disturbed times; measuring as a whole is in test_measure.py."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from adaserve.executor.profiler import never_falling

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
