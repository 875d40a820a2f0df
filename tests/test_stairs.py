"""Stairs: a run of rows costs what each of them does alone, whatever was learned before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.stairs import Stairs

curves = st.dictionaries(st.integers(1, 90), st.floats(0.1, 50.0), max_size=8).map(lambda curve: dict(sorted(curve.items())))
corrections = st.lists(st.tuples(st.integers(1, 200), st.floats(-0.3, 0.3)), max_size=12)


@given(curves.filter(bool), corrections, st.integers(1, 200), st.integers(0, 120))
def test_a_run_costs_what_each_of_its_rows_does(
    curve: dict[int, float], learned: list[tuple[int, float]], rows: int, most: int
) -> None:
    stairs = Stairs(curve)
    for at, step in learned:
        stairs.nudge(at, step, 0.5)
    assert stairs.run(rows, most).tolist() == pytest.approx([stairs(at) for at in range(rows, rows + most + 1)], rel=1e-12)


@pytest.mark.parametrize("curve", [{}, {3: 2.0}])
def test_a_run_from_nothing_begins_with_the_first_point(curve: dict[int, float]) -> None:
    assert Stairs(curve).run(0, 4).tolist() == [curve.get(3, 0.0)] * 5
