"""The surplus selection against a slow twin that buys one node after another and looks at every total."""

import itertools
from dataclasses import replace

import torch
from hypothesis import given

from adaserve.policy.plus.calibration import Calibration
from adaserve.policy.plus.parts import LearningConstants
from adaserve.policy.plus.selection import SurplusSelection
from adaserve.purse import Purse
from adaserve.step import Limits
from adaserve.tree import ROOT, CandidateTree
from tests.strategies import Batch, batches, greedy, is_connected, node_sets, plain, seeds

URGENCY = 3.0


def bought_one_by_one(batch: Batch, urgency: float) -> list[float]:
    """The worths of the best 0, 1, ... nodes: at every step the worthiest node whose parent was bought. Slow and obvious."""
    trees = plain(batch.candidates)
    held: list[set[int]] = [set() for _ in trees]
    gained = [1.0] * len(trees)
    totals = [0.0]
    for _ in range(batch.limits.nodes):
        offers = []
        for i, tree in enumerate(trees):
            ready = [
                (-f, v) for v, (f, above) in enumerate(tree) if f > 0 and v not in held[i] and (above == ROOT or above in held[i])
            ]
            if ready:
                f, v = -min(ready)[0], min(ready)[1]
                short = gained[i] < min(batch.need[i].item(), batch.limits.depth + 1)
                offers.append((f * urgency if short else f, -i, v, f))
        if not offers:
            break
        worth, minus_i, v, f = max(offers)
        held[-minus_i].add(v)
        gained[-minus_i] += f
        totals.append(totals[-1] + worth)
    return totals


def stairs(nodes: int, rng_seed: int) -> tuple[float, ...]:
    """A staircase of prices: steps of random height, never falling."""
    heights = torch.rand(nodes, generator=torch.Generator().manual_seed(rng_seed)).mul(4).floor().mul(0.1)
    return tuple(itertools.accumulate(heights.tolist(), initial=0.0))


@given(batch=batches(), seed=seeds())
def test_takes_the_largest_surplus_of_connected_trees(batch: Batch, seed) -> None:
    price = stairs(batch.limits.nodes, seed.randrange(2**31))
    limits = replace(batch.limits, price=price)
    found = SurplusSelection(URGENCY, None)(batch.candidates, batch.need, Purse.of(limits), batch.temperature)
    assert is_connected(batch.candidates, found.chosen) and not (found.slo & ~found.chosen).any()
    totals = bought_one_by_one(batch, URGENCY)
    best = max(total - price[k] for k, total in enumerate(totals))
    count = int(found.chosen.sum())
    assert count < len(totals)
    assert abs(totals[count] - price[count] - best) < 1e-9
    value = 0.0
    for i, nodes in enumerate(node_sets(found.chosen)):
        gained = 1.0
        for f in sorted((batch.candidates.path_prob[i, v].item() for v in nodes), reverse=True):
            value += f * (URGENCY if gained < min(batch.need[i].item(), limits.depth + 1) else 1.0)
            gained += f
    assert abs(value - totals[count]) < 1e-9


@given(batch=batches())
def test_free_nodes_are_all_taken(batch: Batch) -> None:
    found = SurplusSelection(URGENCY, None)(batch.candidates, batch.need, Purse.of(batch.limits), batch.temperature)
    assert int(found.chosen.sum()) == min(int((batch.candidates.path_prob > 0).sum()), batch.limits.nodes)


def test_the_far_end_of_a_stair_is_found() -> None:
    """A stair that the first nodes do not pay for, but all together do."""
    f = torch.full((8, 1), 0.5, dtype=torch.float64)
    ids = torch.zeros(8, 1, dtype=torch.int64)
    star = CandidateTree(ids, ids - 1, ids + 1, f, ids)
    none = torch.zeros(8, dtype=torch.float64)
    stair = Limits(8, 0, 1, price=(0.0, *[3.0] * 8))
    steep = Limits(8, 0, 1, price=(0.0, *[5.0] * 8))
    assert int(SurplusSelection(1.0, None)(star, none, Purse.of(stair), greedy(star)).chosen.sum()) == 8
    assert int(SurplusSelection(1.0, None)(star, none, Purse.of(steep), greedy(star)).chosen.sum()) == 0
    assert int(SurplusSelection(1.0, None)(star, torch.full_like(none, 2.0), Purse.of(stair), greedy(star)).slo.sum()) == 8


@given(batch=batches(), seed=seeds())
def test_calibrated_choices_stay_connected(batch: Batch, seed) -> None:
    found = SurplusSelection(URGENCY, Calibration(LearningConstants(), coupled=True))(
        batch.candidates, batch.need, Purse.of(batch.limits), batch.temperature
    )
    assert is_connected(batch.candidates, found.chosen)
    assert int(found.chosen.sum()) <= batch.limits.nodes
