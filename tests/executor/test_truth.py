"""A simulated machine's time: the profile's curves times residuals, deaf to what the scheduler learns."""

from itertools import islice, pairwise, repeat

import numpy as np
import pytest

from adaserve.errors import InvalidConfig
from adaserve.executor.truth import Truth, drawn_residuals, recorded_residuals
from adaserve.latency import LatencyModel
from adaserve.profile import Profile
from adaserve.step import StepShape

PROFILE = Profile("test", {1: 10.0, 64: 20.0}, 0.1, {1: 1.0, 64: 2.0}, 0.01, 0.5, 0.1, 10.0)
SHAPE = StepShape(rows=64, context=10_000, draft_rows=(64, 1), draft_context=1000)


def test_times_are_the_curves() -> None:
    times = Truth(PROFILE, repeat(1.0)).times(SHAPE)
    assert times.verify == pytest.approx(20e-3 + 10 * 0.1e-3)
    assert times.speculate == pytest.approx(2e-3 + 1e-3 + 0.01e-3)
    assert times.commit == pytest.approx(0.5e-3)
    assert times.select == times.schedule == 0


def test_residuals_come_one_a_step_and_scale_everything() -> None:
    truth = Truth(PROFILE, iter((1.0, 2.0, 0.5)))
    once, twice, half = (truth.times(SHAPE).total for _ in range(3))
    assert twice == pytest.approx(2 * once)
    assert half == pytest.approx(once / 2)


def test_drawn_residuals_have_mean_one_and_the_stated_spread() -> None:
    drawn = np.array(list(islice(drawn_residuals(0.1, np.random.default_rng(0)), 20_000)))
    assert drawn.min() > 0
    assert drawn.mean() == pytest.approx(1.0, abs=0.005)
    assert drawn.std() == pytest.approx(0.1, abs=0.005)
    assert set(islice(drawn_residuals(0.0, np.random.default_rng(0)), 10)) == {1.0}


def test_recorded_residuals_come_in_their_order_round_and_round() -> None:
    ratios = (1.0, 2.0, 3.0, 4.0)
    drawn = list(islice(recorded_residuals(ratios, np.random.default_rng(3)), 12))
    assert all(b == a % 4 + 1 for a, b in pairwise(drawn))


@pytest.mark.parametrize("ratios", [(), (0.0,), (1.0, -1.0), (float("nan"),), (float("inf"),)])
def test_residuals_that_make_no_sense_are_refused(ratios: tuple[float, ...]) -> None:
    with pytest.raises(InvalidConfig, match="positive"):
        recorded_residuals(ratios, np.random.default_rng(0))


def test_the_scheduler_learns_of_a_slower_machine_from_steps_alone() -> None:
    truth, believed = Truth(PROFILE, repeat(1.5)), LatencyModel(PROFILE)
    assert believed.predict(SHAPE) < 0.7 * truth.times(SHAPE).total
    for _ in range(200):
        believed.observe(SHAPE, truth.times(SHAPE))
    assert believed.predict(SHAPE) == pytest.approx(truth.times(SHAPE).total, rel=0.05)
