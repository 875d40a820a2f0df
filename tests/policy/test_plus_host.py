"""The selection of `adaserve+` in arrays against its twin in tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.policy.plus.calibration import REFIT, Calibration
from adaserve.policy.plus.selection import chosen_on_device, chosen_on_host
from adaserve.purse import Purse
from adaserve.tree import CandidateTree, Source
from tests.policy.test_calibration import steps
from tests.policy.test_plus_selection import stairs
from tests.strategies import Batch, batches, candidate_trees, seeds


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """One that has learned that the draft promises too much."""
    learned = Calibration(coupled=False)
    for source in Source:
        for drafted in steps(np.random.default_rng(0), 2 * REFIT, lambda said: 0.7 * said, source):
            learned.learn(drafted, (0.0, 0.5, 1.0, 2.0) * 10)
    return learned


@given(batch=batches(), seed=seeds(), priced=st.booleans(), urgency=st.sampled_from([1.0, 3.0]))
def test_both_choose_the_same_nodes(batch: Batch, seed, priced: bool, urgency: float) -> None:
    limits = batch.limits
    if priced:
        limits = replace(limits, price=stairs(limits.nodes, seed.randrange(2**31)))
    f, purse = batch.candidates.path_prob, Purse.of(limits)
    if f.shape[0] == 0 or f.shape[1] == 0:
        return
    host, device = chosen_on_host(f, batch.need, purse, urgency), chosen_on_device(f, batch.need, purse, urgency)
    assert torch.equal(host.chosen, device.chosen) and torch.equal(host.slo, device.slo)


@given(candidates=candidate_trees(), seed=seeds())
def test_both_calibrate_alike(calibration: Calibration, candidates: CandidateTree, seed) -> None:
    temperature = torch.tensor([seed.choice((0.0, 0.7, 1.0)) for _ in candidates.token], dtype=torch.float64)
    host, device = calibration.on_host(candidates, temperature), calibration.on_device(candidates, temperature)
    assert host.dtype == device.dtype and torch.equal(host, device)
    if (candidates.path_prob > 0).any():
        assert not torch.equal(host, candidates.path_prob)  # something was learned
