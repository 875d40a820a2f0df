"""Budgets count what a padded pass computes: no step that chooses among candidates computes more rows than its budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.latency import LatencyModel
from adaserve.padding import GraphPadding, Unpadded, most_nodes
from adaserve.policy.adaptive import Constants
from adaserve.policy.plus.assembly import make_plus
from adaserve.policy.plus.parts import PlusConstants, PlusParts
from adaserve.policy.policy import Demand, Scene
from tests.engines import PROFILE
from tests.scheduling.steps import decoding, request, scheduler, step, waiting

BUDGET = Constants(verify_rows=64, draft_rows=64, depth_max=4, prompt_rows=20, idle_prompt_rows=600)


@pytest.mark.parametrize("prompt", [0, 13])
@given(count=st.integers(6, 24))
def test_a_budget_holds_the_padding(prompt: int, count: int) -> None:
    rows = {}
    for padding in (Unpadded(), GraphPadding()):
        made = scheduler(constants=BUDGET, pages=2000, slots=32, padding=padding)
        made.admit([request(f"{i}", 3, output=20, stem=i) for i in range(count)], 0.0)
        step(made, 0.0)
        if prompt:
            made.admit([request("late", prompt, stem=99)], 0.1)
        plan = made.plan(0.1)
        assert plan is not None and len(plan.decoding) == count and sum(c.length for c in plan.chunks) == prompt
        nodes = min(plan.limits.nodes, count * plan.depth * plan.width)
        rows[type(padding)] = padding.whole(padding.trees(count, nodes, nodes), prompt)
    assert rows[GraphPadding] <= 64 and rows[Unpadded] <= 64


@given(count=st.integers(1, 60), backlog=st.integers(0, 300))
def test_adaserve_plus_fills_what_it_pays_for(count: int, backlog: int) -> None:
    """At least half of the usual nodes find room in its budget, and prompts take what padding is left, if there are any."""
    padding = GraphPadding()
    scheduling = make_plus("p", BUDGET, PlusParts(), PlusConstants()).scheduling
    prompts = [waiting("b", prompt=backlog)] if backlog else []
    scene = Scene(0.0, [decoding(f"{i}") for i in range(count)], prompts, 0, LatencyModel(PROFILE), padding, crowded=False)
    share = scheduling.share(Demand(count, backlog, scene))
    prompt = min(share.prompt_rows, backlog)
    room = most_nodes(padding, count, prompt, share.budget)
    trees = padding.trees(count, room, room)
    assert share.nodes is not None and (share.depth == 0 or room >= share.nodes // 2)
    assert padding.whole(trees, prompt) <= share.budget
    assert not 0 < prompt < backlog or padding.whole(trees, prompt + 1) > share.budget
