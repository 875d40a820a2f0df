"""What the executor chooses among padded requests, with padded prices, is what the selection chooses by itself."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given

from adaserve.assembly import Sizes, make_executor
from adaserve.clock import WallClock
from adaserve.executor.device import DeviceExecutor
from adaserve.policy.plus.calibration import Calibration
from adaserve.policy.plus.parts import LearningConstants
from adaserve.policy.plus.selection import SurplusSelection
from adaserve.policy.selection import ChainSelection, LikelihoodSelection, SloSelection
from adaserve.purse import Choose, Purse
from adaserve.step import StepPlan
from tests.devices import DEVICE
from tests.executor.test_cuda import models
from tests.policy.test_plus_selection import stairs
from tests.strategies import Batch, batches, seeds


@pytest.fixture(scope="module")
def executor() -> DeviceExecutor:
    return make_executor(models(torch.float64), Sizes(8, 64, 40, 4), WallClock(), padded=True)


def plan_of(batch: Batch) -> StepPlan:
    n = len(batch.need)
    nothing = (None,) * n
    need, temperature = tuple(batch.need.tolist()), tuple(batch.temperature.tolist())
    return StepPlan((), (), (), tuple(range(n)), need, (9,) * n, temperature, nothing, (), (), batch.limits, 4, 2, 0.0)


@pytest.mark.parametrize(
    "choose",
    [
        SloSelection(),
        LikelihoodSelection(),
        ChainSelection(),
        SurplusSelection(3.0, None),
        SurplusSelection(3.0, Calibration(LearningConstants(), coupled=True)),
    ],
    ids=["slo", "likelihood", "chain", "surplus", "calibrated"],
)
@given(batch=batches(), seed=seeds())
def test_padding_changes_nothing(executor: DeviceExecutor, choose: Choose, batch: Batch, seed) -> None:
    if seed.random() < 0.5:
        batch = replace(batch, limits=replace(batch.limits, price=stairs(batch.limits.nodes, seed.randrange(2**31))))
    candidates = type(batch.candidates)(*(x.to(DEVICE) for x in vars(batch.candidates).values()))
    found = executor.select(plan_of(batch), candidates, choose)
    expected = choose(candidates, batch.need.to(DEVICE), Purse.of(batch.limits, DEVICE), batch.temperature.to(DEVICE))
    n = len(batch.need)
    assert torch.equal(found.chosen[:n], expected.chosen) and torch.equal(found.slo[:n], expected.slo)
    assert not found.chosen[n:].any() and not found.slo[n:].any()
