"""The search on functions whose answer is known, and on noisy ones, whose answer must at least be locally right."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.bench.capacity import capacity, grid_index, grid_speed

GOALS = (0.95, 0.99)


class Probes:
    """An attainment by load that remembers where it was asked."""

    def __init__(self, edge: float, noise: float = 0.0, seed: int = 0) -> None:
        self.asked: list[float] = []
        self._edge, self._noise, self._rng = edge, noise, random.Random(seed)

    def __call__(self, speed: float) -> float:
        self.asked.append(speed)
        return min(1.0, max(0.0, self._edge / speed + self._rng.uniform(-self._noise, self._noise)))


@given(st.integers(-140, 140))
def test_the_grid_is_its_own_inverse(index: int) -> None:
    assert grid_index(grid_speed(index)) == index


@given(edge=st.floats(0.01, 100), start=st.floats(0.01, 100))
def test_the_answer_is_the_highest_speed_that_attains(edge: float, start: float) -> None:
    probes = Probes(edge)
    found = capacity(probes, GOALS, start)
    for goal in GOALS:
        speed = found[goal]
        assert speed is not None
        index = grid_index(speed)
        assert min(1.0, edge / speed) >= goal > min(1.0, edge / grid_speed(index + 1))
    assert len(probes.asked) == len(set(probes.asked)), "a load was probed twice"
    assert len(probes.asked) <= 24


@given(edge=st.floats(0.05, 20), seed=st.integers(0, 999), start=st.floats(0.05, 20))
def test_with_noise_the_answer_was_probed_and_its_neighbour_failed(edge: float, seed: int, start: float) -> None:
    probes = Probes(edge, noise=0.05, seed=seed)
    values: dict[float, float] = {}

    def remembered(speed: float) -> float:
        values[speed] = probes(speed)
        return values[speed]

    found = capacity(remembered, GOALS, start)
    answers = [0.0 if found[goal] is None else found[goal] for goal in GOALS]
    assert answers[0] >= answers[1], "more load for the stricter goal"
    for goal in GOALS:
        speed = found[goal]
        if speed is not None:
            assert values[speed] >= goal > values[grid_speed(grid_index(speed) + 1)]


def test_nothing_attains_and_everything_does() -> None:
    assert capacity(lambda speed: 0.5, GOALS, least=0.1) == {0.95: None, 0.99: None}
    assert capacity(lambda speed: 1.0, GOALS, most=4.0) == dict.fromkeys(GOALS, grid_speed(grid_index(4.0)))


def test_a_probe_that_was_cut_short_ends_the_search() -> None:
    def cut(speed: float) -> float | None:
        return 0.97 if speed < 2 else None

    assert capacity(cut, GOALS) == {}
    answers = iter([0.97, 0.5, 0.5, 0.5, None])
    assert 0.99 not in capacity(lambda speed: next(answers), GOALS)


@pytest.mark.parametrize("start", [0, -1, float("inf"), float("nan")])
def test_senseless_starts(start: float) -> None:
    with pytest.raises(ValueError, match="load"):
        capacity(lambda speed: 1.0, GOALS, start)
