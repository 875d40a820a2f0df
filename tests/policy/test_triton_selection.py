"""The Triton kernels that select for `adaserve+` equal their torch twin, on a GPU or in Triton's interpreter."""

import math
import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaserve.policy.plus.calibration import Calibration
from adaserve.policy.plus.selection import SurplusSelection, surplus_reference
from adaserve.policy.selection import LikelihoodSelection, SloSelection
from adaserve.purse import Purse, Selected
from adaserve.step import Limits
from adaserve.tree import MAX_NODES, CandidateTree
from tests.captures import Replaying
from tests.devices import DEVICE, needs_gpu, needs_triton
from tests.policy.test_calibration import LEARNING, bushes
from tests.policy.test_plus_selection import stairs
from tests.strategies import Batch, batches, is_connected, random_candidates, seeds

URGENCY = 2.7
TEMPERATURES = (0.0, 0.5, 0.75, 1.0)


@pytest.fixture(scope="module")
def kernels():
    from adaserve.policy.plus import triton_selection

    return triton_selection


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """One whose rows all differ: at every temperature, from every source, at every depth, of both births."""
    learned = Calibration(LEARNING, coupled=False)
    rng = np.random.default_rng(0)
    for drafted in bushes(rng, 4 * LEARNING.refit_steps):
        hot = replace(drafted, depth=tuple(min(d + int(rng.integers(2)), 3) for d in drafted.depth))
        learned.learn(hot, (0.0, 0.5, 1.0, 0.0, 0.7, 2.0))
    return learned


def on_device(tree: CandidateTree) -> CandidateTree:
    return CandidateTree(*(x.to(DEVICE) for x in vars(tree).values()))


def padded_purse(limits: Limits, most: int) -> Purse:
    """As executor/select.py makes it: room for more than may be bought."""
    price = torch.tensor([*limits.price[: most + 1], *[math.inf] * (most + 1 - len(limits.price))] if limits.price else [])
    nodes = torch.full((), min(limits.nodes, most), dtype=torch.int64, device=DEVICE)
    return Purse(nodes, price.double().to(DEVICE), 0, most, limits.per_request, limits.depth, limits.order)


def assert_same(found: Selected, expected: Selected) -> None:
    assert found.chosen.dtype == found.slo.dtype == torch.bool
    assert torch.equal(found.chosen, expected.chosen) and torch.equal(found.slo, expected.slo)


def assert_twins_agree(kernels, batch: Batch, purse: Purse, calibration: Calibration | None) -> Selected:
    candidates = on_device(batch.candidates)
    given_ = candidates, batch.need.to(DEVICE), purse, batch.temperature.to(DEVICE), URGENCY, calibration
    found = kernels.surplus(*given_)
    assert_same(found, surplus_reference(*given_))
    return found


@needs_triton
@pytest.mark.parametrize("calibrated", [False, True], ids=["plain", "calibrated"])
@settings(max_examples=40, deadline=None)
@given(batch=batches(8, 20), seed=seeds(), priced=st.booleans(), idle=st.integers(0, 3))
def test_equals_its_twin(
    kernels, calibration: Calibration, calibrated: bool, batch: Batch, seed: random.Random, priced: bool, idle: int
) -> None:
    """Also among equals, with requests behind the others that have no candidates, and with little or much to be bought."""
    n, columns = batch.candidates.path_prob.shape
    candidates = batch.candidates.resized(n + idle)
    nothing = torch.zeros(idle, dtype=torch.float64)
    temperature = torch.tensor([seed.choice(TEMPERATURES) for _ in range(n)], dtype=torch.float64)
    batch = replace(
        batch, candidates=candidates, need=torch.cat([batch.need, nothing]), temperature=torch.cat([temperature, nothing])
    )
    size = (n + idle) * columns
    if size == 0:
        return
    limits = batch.limits
    if priced:
        steps = stairs(limits.nodes, seed.randrange(2**31))
        # Surpluses differ by more than rounding: a GPU adds in another order than the twin. For ties see below.
        limits = replace(limits, price=tuple(price + 1e-4 * seed.random() for price in steps))
    most = seed.choice((1, limits.nodes, size // 2, size, size + 5))
    purse = padded_purse(limits, min(max(most, limits.nodes, 1), size))
    found = assert_twins_agree(kernels, batch, purse, calibration if calibrated else None)
    assert not found.chosen[n:].any() and int(found.chosen.sum()) <= limits.nodes
    assert is_connected(batch.candidates, found.chosen.cpu())


@needs_triton
@pytest.mark.parametrize(("n", "columns"), [(1, 1), (1, 128), (3, 64), (12, 90), (40, 16)])
@pytest.mark.parametrize("calibrated", [False, True], ids=["plain", "calibrated"])
def test_large_batches_equal_their_twin(kernels, calibration: Calibration, n: int, columns: int, calibrated: bool) -> None:
    """More than a block of worths, of sums and of candidates that may be verified."""
    rng = random.Random(n)
    for tied, share, steep in ((False, 1.0, 0.02), (True, 1.0, 0.02), (False, 0.3, 0.3), (True, 0.3, 0.0)):
        candidates = random_candidates(rng, n, columns, tied)
        need = torch.tensor([rng.choice((0.0, 1.5, 2.0, 3.0, 1e9)) for _ in range(n)], dtype=torch.float64)
        temperature = torch.tensor([rng.choice(TEMPERATURES) for _ in range(n)], dtype=torch.float64)
        size = n * columns
        nodes = max(int(share * size), 1)
        price = tuple(steep * 8 * (k // 8) + 1e-4 * rng.random() for k in range(nodes + 1)) if steep else ()
        limits = Limits(nodes, columns, int(candidates.depth.max()), price=price)
        batch = Batch(candidates, need, limits, temperature)
        found = assert_twins_agree(kernels, batch, padded_purse(limits, size), calibration if calibrated else None)
        assert int(found.chosen.sum(1).max()) <= MAX_NODES


@needs_triton
@pytest.mark.parametrize(("price", "bought"), [(100.0, 630), (157.5, 0), (160.0, 0)])
def test_the_far_end_of_a_stair_is_found(kernels, price: float, bought: int) -> None:
    """One step that only all nodes together pay for: they are worth 157.5, and are more than are summed at once."""
    ids, none = torch.zeros(10, 63, dtype=torch.int64), torch.zeros(10, dtype=torch.float64)
    star = CandidateTree(ids, ids - 1, ids + 1, torch.full_like(ids, 0.25, dtype=torch.float64), ids)
    limits = Limits(630, 63, 1, price=(0.0, *[price] * 630))
    found = assert_twins_agree(kernels, Batch(star, none, limits, none), padded_purse(limits, 630), None)
    assert int(found.chosen.sum()) == bought


@needs_triton
@settings(max_examples=40, deadline=None)
@given(batch=batches(8, 20))
def test_what_costs_nothing_and_nobody_needs_is_what_throughput_takes(kernels, batch: Batch) -> None:
    """LikelihoodSelection has the kernels choose on a GPU, for SloSelection's second phase alone is a surplus without prices."""
    limits = replace(batch.limits, nodes=max(batch.limits.nodes, 1))
    if batch.candidates.path_prob.numel() == 0:
        return
    candidates, need = on_device(batch.candidates), torch.zeros_like(batch.need, device=DEVICE)
    purse = padded_purse(limits, limits.nodes)
    found = kernels.surplus(candidates, need, purse, batch.temperature.to(DEVICE), 1.0, None)
    assert_same(found, SloSelection()(candidates, need, purse, batch.temperature))


@needs_triton
def test_the_calibration_is_read_where_it_is_refitted(kernels) -> None:
    """A captured call, which goes on with the tensors it was given first, sees what was learned since."""
    learning, draw, capture = Calibration(LEARNING, coupled=True), random.Random(1), Replaying(DEVICE)
    candidates = on_device(random_candidates(draw, 12, 24, tied=False))
    cold = torch.zeros(12, dtype=torch.float64, device=DEVICE)
    limits = Limits(288, 24, int(candidates.depth.max()), price=tuple(0.05 * k for k in range(289)))
    purse = padded_purse(limits, 288)

    def choose(*fields: torch.Tensor) -> Selected:
        return kernels.surplus(CandidateTree(*fields), cold, purse, cold, URGENCY, learning)

    before = capture("select", choose, *vars(candidates).values()).chosen.clone()
    for drafted in bushes(np.random.default_rng(1), LEARNING.refit_steps):
        learning.learn(drafted, (0.0,) * 6)
    found = capture("select", choose, *vars(candidates).values())
    assert capture.replays["select"] == 1 and not torch.equal(found.chosen, before)
    assert_same(found, surplus_reference(candidates, cold, purse, cold, URGENCY, learning))


@needs_triton
def test_only_what_fits_is_taken(kernels) -> None:
    assert kernels.able(1, 1) and kernels.able(128, 128)
    assert not kernels.able(1, 0) and not kernels.able(1, 129) and not kernels.able(300, 64)


@needs_gpu
@pytest.mark.cuda
@pytest.mark.parametrize("calibrated", [False, True], ids=["plain", "calibrated"])
def test_a_gpu_chooses_what_a_cpu_does(kernels, calibration: Calibration, calibrated: bool) -> None:
    """Probabilities at random, so that hardly any sums differ by rounding alone; also of more columns than the kernels take."""
    rng = random.Random(5)
    for (n, columns), selection in product(
        ((1, 3), (5, 24), (16, 40), (9, 128), (4, 140)),
        (SurplusSelection(URGENCY, calibration if calibrated else None), LikelihoodSelection()),
    ):
        candidates = random_candidates(rng, n, columns, tied=False)
        need = torch.tensor([rng.uniform(0.0, 5.0) for _ in range(n)], dtype=torch.float64)
        temperature = torch.tensor([rng.choice(TEMPERATURES) for _ in range(n)], dtype=torch.float64)
        price = tuple(0.3 * (k // 8) + 1e-3 * rng.random() for k in range(n * columns // 2 + 1))
        limits = Limits(len(price) - 1, columns, int(candidates.depth.max()), price=price)
        expected = selection(candidates, need, Purse.of(limits), temperature)
        found = selection(on_device(candidates), need.to(DEVICE), Purse.of(limits, DEVICE), temperature.to(DEVICE))
        assert_same(Selected(found.chosen.cpu(), found.slo.cpu()), expected)


@needs_gpu
@pytest.mark.cuda
def test_nothing_is_compiled_after_the_first_selection(kernels, calibration: Calibration) -> None:
    """Whatever the requests, the columns, the prices and the place in memory: while serving it would hold up everybody."""
    rng, compiled = random.Random(7), (kernels._worth_kernel, kernels._place_kernel, kernels._buy_kernel)
    seen = []
    for n, columns in ((3, 17), (1, 1), (16, 16), (5, 128), (1, 64)):
        for nodes, prices in ((1, 0), (n * columns, 0), (n * columns, n * columns + 1)):
            candidates = on_device(random_candidates(rng, n, columns, tied=False))
            numbers = torch.zeros(2 * n + 1 + prices, dtype=torch.float64, device=DEVICE)
            limits = Limits(nodes, columns, rng.choice((1, 8, 16)))
            purse = replace(padded_purse(limits, nodes), price=numbers[2 * n + 1 :])
            kernels.surplus(candidates, numbers[1 : n + 1], purse, numbers[n + 1 : 2 * n + 1], URGENCY, calibration)
            seen.append([len(kernel.device_caches[0][0]) for kernel in compiled])
    assert all(counts == seen[0] for counts in seen)
