"""The selection of `adaserve+` in plain numbers against its twin in tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.policy.plus.calibration import Calibration
from adaserve.policy.plus.selection import SurplusSelection
from adaserve.purse import in_tensors
from adaserve.tree import CandidateTree, Source
from tests.policy.test_calibration import LEARNING, steps
from tests.policy.test_plus_selection import stairs
from tests.strategies import Batch, batches, candidate_trees, seeds


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """One that has learned that the draft promises too much."""
    learned = Calibration(LEARNING, coupled=False)
    for source in Source:
        for drafted in steps(np.random.default_rng(0), 2 * LEARNING.refit_steps, lambda said: 0.7 * said, source):
            learned.learn(drafted, (0.0, 0.5, 1.0, 2.0) * 10)
    return learned


@pytest.mark.parametrize("calibrated", [False, True])
@given(batch=batches(), seed=seeds(), priced=st.booleans(), urgency=st.sampled_from([1.0, 3.0]))
def test_both_choose_the_same_nodes(
    calibration: Calibration, calibrated: bool, batch: Batch, seed, priced: bool, urgency: float
) -> None:
    limits = batch.limits
    if priced:
        limits = replace(limits, price=stairs(limits.nodes, seed.randrange(2**31)))
    selection = SurplusSelection(urgency, calibration if calibrated else None)
    numbers = batch.candidates, batch.need.tolist(), limits, batch.temperature.tolist()
    host, tensors = selection.on_host(*numbers), in_tensors(selection, *numbers)
    assert torch.equal(host.chosen, tensors.chosen) and torch.equal(host.slo, tensors.slo)


@given(candidates=candidate_trees(), seed=seeds())
def test_both_calibrate_alike(calibration: Calibration, candidates: CandidateTree, seed) -> None:
    temperature = [seed.choice((0.0, 0.7, 1.0)) for _ in candidates.token]
    host = torch.tensor(calibration.on_host(candidates, temperature), dtype=torch.float64).view_as(candidates.path_prob)
    tensors = calibration(candidates, torch.tensor(temperature, dtype=torch.float64))
    assert tensors.dtype == host.dtype and torch.equal(host, tensors)
    if (candidates.path_prob > 0).any():
        assert not torch.equal(host, candidates.path_prob)  # something was learned
