"""Selection against the oracles: Algorithm 2 with heaps, Algorithm 1, brute force."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from adaserve.policy.selection import ChainSelection, LikelihoodSelection, Selection, SloSelection
from adaserve.purse import Purse, Selected
from adaserve.step import Limits, Order
from adaserve.tree import MAX_NODES, CandidateTree
from tests.oracles.algorithm1 import algorithm1, total
from tests.oracles.algorithm2 import algorithm2
from tests.oracles.brute_force import brute_force
from tests.strategies import Batch, batches, greedy, is_connected, node_sets, plain, random_batch, random_candidates, seeds

slo_selection = SloSelection()
chain_selection = ChainSelection()
likelihood_selection = LikelihoodSelection()
selections = pytest.mark.parametrize("selection", [slo_selection, chain_selection, likelihood_selection])


def select(selection: Selection, batch: Batch) -> Selected:
    """What it chooses, in either form."""
    found = selection(batch.candidates, batch.need, Purse.of(batch.limits), batch.temperature)
    host = selection.on_host(batch.candidates, batch.need.tolist(), batch.limits, batch.temperature.tolist())
    assert torch.equal(host.chosen, found.chosen) and torch.equal(host.slo, found.slo)
    return found


def assert_lawful(batch: Batch, selected: Selected) -> None:
    """What holds for every selection: see Selected."""
    assert selected.chosen.shape == batch.candidates.token.shape
    assert is_connected(batch.candidates, selected.chosen)
    assert int(selected.chosen.sum()) <= batch.limits.nodes
    assert all(len(nodes) <= MAX_NODES for nodes in node_sets(selected.chosen))
    assert not (selected.slo & ~selected.chosen).any()
    assert is_connected(batch.candidates, selected.slo)


def assert_equals_algorithm2(batch: Batch) -> None:
    selected = select(slo_selection, batch)
    chosen, slo = algorithm2(plain(batch.candidates), batch.need.tolist(), batch.limits)
    assert node_sets(selected.chosen) == chosen
    assert node_sets(selected.slo) == slo


@given(batches())
@settings(max_examples=300)
def test_equals_algorithm2(batch: Batch) -> None:
    assert_equals_algorithm2(batch)


def test_equals_algorithm2_on_thousands_of_batches() -> None:
    rng = random.Random(20250112)
    contested = 0
    for _ in range(3000):
        batch = random_batch(rng)
        assert_equals_algorithm2(batch)
        contested += 0 < batch.limits.nodes < int((batch.candidates.path_prob > 0).sum())
    assert contested > 1000  # otherwise there was nothing to decide


def test_equals_algorithm2_on_trees_larger_than_a_mask() -> None:
    rng = random.Random(1)
    for _ in range(20):
        assert_equals_algorithm2(random_batch(rng, max_requests=4, max_columns=2 * MAX_NODES))


@selections
@given(batch=batches(max_columns=80))
def test_is_lawful(selection: Selection, batch: Batch) -> None:
    assert_lawful(batch, select(selection, batch))


@given(batches())
def test_spends_the_whole_budget_if_it_can(batch: Batch) -> None:
    real = int((batch.candidates.path_prob > 0).sum())
    for selection in (slo_selection, chain_selection, likelihood_selection):
        assert int(select(selection, batch).chosen.sum()) == min(batch.limits.nodes, real)


@given(batches())
def test_slo_phase_keeps_to_its_caps_and_stops_at_the_target(batch: Batch) -> None:
    slo = node_sets(select(slo_selection, batch).slo)
    for tree, nodes, need in zip(plain(batch.candidates), slo, batch.need.tolist(), strict=True):
        assert len(nodes) <= batch.limits.per_request
        if nodes:  # without its last node, the least of them, the target was not met yet
            f = sorted((tree[v][0] for v in nodes), reverse=True)
            assert 1.0 + sum(f[:-1]) < min(need, batch.limits.depth + 1)


@given(batches())
def test_requests_without_a_target_have_no_slo_phase(batch: Batch) -> None:
    selected = slo_selection(batch.candidates, torch.zeros_like(batch.need), Purse.of(batch.limits), batch.temperature)
    assert not selected.slo.any()


@given(seeds())
def test_reaches_the_optimum_when_there_is_one(rng: random.Random) -> None:
    """With f known and no caps in the way, Algorithm 2 is Algorithm 1, whatever the order of requests."""
    candidates = random_candidates(rng, rng.randint(1, 5), rng.randint(1, 12), tied=rng.random() < 0.5)
    trees = plain(candidates)
    need = [rng.uniform(0, 2.5) for _ in trees]
    budget = len(trees) + rng.randint(0, 30)
    best = algorithm1(trees, need, budget)
    if best is None:
        return
    for order in Order:
        limits = Limits(nodes=budget - len(trees), per_request=MAX_NODES, depth=12, order=order)
        chosen = node_sets(
            slo_selection(candidates, torch.tensor(need, dtype=torch.float64), Purse.of(limits), greedy(candidates)).chosen
        )
        assert total(trees, chosen) == pytest.approx(total(trees, best), abs=1e-9)
        assert all(1.0 + sum(tree[v][0] for v in s) >= a - 1e-9 for tree, s, a in zip(trees, chosen, need, strict=True))


def test_algorithm1_equals_brute_force() -> None:
    """On tiny trees, with probabilities whose sums are exact so that feasibility cannot hang on rounding."""
    rng = random.Random(7)
    feasible = 0
    for _ in range(400):
        trees = plain(random_candidates(rng, rng.randint(1, 3), rng.randint(0, 5), tied=True))
        need = [rng.choice((0.0, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)) for _ in trees]
        budget = rng.randint(0, 12)
        chosen, best = algorithm1(trees, need, budget), brute_force(trees, need, budget)
        assert (None if chosen is None else total(trees, chosen)) == best
        feasible += best is not None
    assert 80 < feasible < 320


def chains(*probs: list[float]) -> CandidateTree:
    """One chain per request with these f."""
    f = torch.tensor(probs, dtype=torch.float64)
    column = torch.arange(f.shape[1]).expand(f.shape)
    return CandidateTree(torch.zeros_like(column), column - 1, column + 1, f, torch.zeros_like(column))


def test_stable_order_keeps_parents_ahead_of_children_of_equal_probability() -> None:
    """Long runs of equal f are where an unstable sort breaks trees: any other order of the ties would be disconnected."""
    rng = random.Random(3)
    broken = 0
    for _ in range(50):
        candidates = random_candidates(rng, 4, 48, tied=True)
        ties = torch.rand(candidates.path_prob.shape, generator=torch.Generator().manual_seed(rng.randrange(2**32)))
        for nodes in (5, 20, 60):
            batch = Batch(candidates, torch.full((4,), 3.0, dtype=torch.float64), Limits(nodes, 10, 48), greedy(candidates))
            assert_lawful(batch, select(slo_selection, batch))
            # The negative control: the same number of likeliest nodes with ties in random order.
            loose = (candidates.path_prob + 1e-9 * ties * (candidates.path_prob > 0)).flatten().argsort(descending=True)[:nodes]
            mask = torch.zeros(4 * 48, dtype=torch.bool).scatter_(0, loose, True).view(4, 48)
            broken += not is_connected(candidates, mask & (candidates.path_prob > 0))
    assert broken > 20


def test_ties_between_requests_go_to_the_one_with_fewer_nodes() -> None:
    candidates = chains([1.0] * 4, [1.0] * 4, [1.0] * 4)
    need = torch.tensor([0.0, 3.0, 0.0], dtype=torch.float64)
    selected = slo_selection(candidates, need, Purse.of(Limits(nodes=6, per_request=4, depth=4)), greedy(candidates))
    assert selected.slo.sum(1).tolist() == [0, 2, 0]
    assert selected.chosen.sum(1).tolist() == [2, 2, 2]


def test_orders_differ_when_the_budget_is_short() -> None:
    """Request 0 is hopeless, 1 needs two nodes, 2 needs one."""
    candidates = chains([0.5, 0.25, 0.1], [0.9, 0.8, 0.7], [0.9, 0.8, 0.7])
    need = torch.tensor([9.0, 2.5, 1.5], dtype=torch.float64)

    def counts(order: Order, nodes: int) -> list[int]:
        return slo_selection(candidates, need, Purse.of(Limits(nodes, 3, 3, order)), greedy(candidates)).slo.sum(1).tolist()

    assert counts(Order.NEEDIEST, 3) == [3, 0, 0]
    assert counts(Order.EASIEST, 3) == [0, 2, 1]
    assert counts(Order.EASIEST, 2) == [0, 1, 1]
    assert counts(Order.ATTAINABLE, 3) == [0, 2, 1]
    assert counts(Order.ATTAINABLE, 2) == [0, 2, 0]
    assert counts(Order.ATTAINABLE, 5) == [2, 2, 1]


def test_need_is_capped_at_depth_plus_one() -> None:
    """More than d + 1 tokens cannot come from d steps, so a hopeless need does not ask for more."""
    candidates = chains([1.0, 1.0, 0.5, 0.5])
    need = torch.tensor([100.0], dtype=torch.float64)
    assert slo_selection(
        candidates, need, Purse.of(Limits(nodes=4, per_request=4, depth=2)), greedy(candidates)
    ).slo.tolist() == [[True, True, False, False]]


@selections
@pytest.mark.parametrize("nodes", [100, 1000])
def test_no_request_gets_more_nodes_than_a_mask_holds(selection: Selection, nodes: int) -> None:
    """Whether the budget is short of the candidates or not; the other request gets what the long one may not have."""
    long, short = [1.0] * 100, [0.5] * 20 + [0.0] * 80
    candidates = chains(long, short)
    selected = selection(
        candidates, torch.zeros(2, dtype=torch.float64), Purse.of(Limits(nodes, per_request=100, depth=100)), greedy(candidates)
    )
    assert selected.chosen.sum(1).tolist() == [MAX_NODES, 20]
    assert selected.chosen[0, :MAX_NODES].all()


@given(batches())
def test_chains_take_shallow_nodes_first(batch: Batch) -> None:
    chosen = select(chain_selection, batch).chosen
    left_out = (batch.candidates.path_prob > 0) & ~chosen
    if chosen.any() and left_out.any():
        assert batch.candidates.depth[chosen].max() <= batch.candidates.depth[left_out].min()


@given(batches())
def test_chains_do_not_look_at_needs_or_the_size_of_probabilities(batch: Batch) -> None:
    flat = replace(batch.candidates, path_prob=(batch.candidates.path_prob > 0).double())
    blind = chain_selection(flat, torch.zeros_like(batch.need), Purse.of(batch.limits), batch.temperature)
    assert torch.equal(blind.chosen, select(chain_selection, batch).chosen)


@given(batches())
def test_likelihood_takes_the_likeliest_nodes_of_the_batch(batch: Batch) -> None:
    """No other choice of as many nodes has a larger expected gain, and targets change nothing."""
    selected = select(likelihood_selection, batch)
    f = batch.candidates.path_prob.flatten().sort(descending=True).values
    best = f[: max(batch.limits.nodes, 0)].sum()
    assert float(batch.candidates.path_prob[selected.chosen].sum()) == pytest.approx(float(best), abs=1e-12)
    assert not selected.slo.any()
    other = likelihood_selection(batch.candidates, batch.need + 3, Purse.of(batch.limits), batch.temperature)
    assert torch.equal(other.chosen, selected.chosen)


@given(batches())
def test_without_targets_the_papers_selection_is_the_likeliest(batch: Batch) -> None:
    free = slo_selection(batch.candidates, torch.zeros_like(batch.need), Purse.of(batch.limits), batch.temperature)
    assert torch.equal(free.chosen, select(likelihood_selection, batch).chosen)
