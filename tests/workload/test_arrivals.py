import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.workload.arrivals import gamma_times

rates = st.floats(0.5, 50)
seeds = st.integers(0, 2**32 - 1)


@given(rate=rates, duration=st.floats(0.1, 20), cv=st.floats(0, 100), seed=seeds)
def test_times_ascend_within_the_duration(rate: float, duration: float, cv: float, seed: int) -> None:
    times = gamma_times(rate, duration, cv, np.random.default_rng(seed))
    assert times == sorted(times)
    assert all(0 <= at < duration for at in times)


@given(rate=rates, seed=seeds)
def test_the_same_seed_gives_the_same_times(rate: float, seed: int) -> None:
    first, second = (gamma_times(rate, 10, 1.0, np.random.default_rng(seed)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("cv", [0.5, 1.0, 1.19, 2.5])
def test_mean_and_variation_of_the_gaps(cv: float) -> None:
    times = gamma_times(20, 2000, cv, np.random.default_rng(7))  # about 40,000 gaps
    gaps = np.diff([0.0, *times])
    assert np.mean(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(cv, rel=0.05)


def test_a_metronome() -> None:
    assert gamma_times(2, 2.2, 0, np.random.default_rng(0)) == pytest.approx([0.5, 1.0, 1.5, 2.0])


@pytest.mark.parametrize(
    ("rate", "duration", "cv"), [(0, 1, 1), (1, 0, 1), (1, 1, -1), (1, 1, 1e200), (float("nan"), 1, 1), (1, float("inf"), 1)]
)
def test_senseless_processes_are_refused(rate: float, duration: float, cv: float) -> None:
    with pytest.raises(ValueError):
        gamma_times(rate, duration, cv, np.random.default_rng(0))
