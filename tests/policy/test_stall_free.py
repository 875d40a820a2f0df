"""Sarathi-Serve's scheduling: no step leaves a decoding request out, and none is longer than the budget."""

from hypothesis import given
from hypothesis import strategies as st

from adaserve.policy.library import Overrides, make_policy
from adaserve.policy.policy import Demand
from adaserve.policy.stall_free import StallFree
from tests.scheduling.steps import CONSTANTS, request, scheduler, step


@given(st.integers(0, 300), st.integers(0, 5000), st.integers(1, 1024), st.none() | st.integers(1, 600))
def test_decodes_first_then_prompts_up_to_the_budget(decoding: int, prompt: int, budget: int, most: int | None) -> None:
    share = StallFree(budget, most).share(Demand(decoding, prompt))
    assert share.decode and share.depth == 0
    assert decoding + share.prompt_rows <= max(budget, decoding)
    if most is None:
        assert decoding + share.prompt_rows >= budget, "rows were left over"
    else:
        assert share.prompt_rows == min(most, max(0, budget - decoding))


def test_the_budget_follows_the_machine_unless_it_is_given() -> None:
    def budget(**fixed: int) -> int:
        return make_policy("sarathi", CONSTANTS, Overrides(**fixed)).scheduling.share(Demand(0, 1)).budget

    assert budget() == 2 * CONSTANTS.verify_rows
    assert budget(budget=100) == 100


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=8), budget=st.integers(2, 30))
def test_no_stalls_and_full_steps(lengths: list[int], budget: int) -> None:
    """Whoever decodes gains a token in every step, and prompts fill each step's budget as long as there are any."""
    made = scheduler("sarathi", pages=400, slots=8, overrides=Overrides(budget=budget))
    made.admit([request(f"r{i}", length, output=40, stem=i) for i, length in enumerate(lengths)], 0.0)
    begun: set[str] = set()
    for now in range(30):
        waiting = sum(lengths) - sum(made.state(slot).computed for slot in range(made.running))
        plan, progress = step(made, float(now))
        assert begun <= {p.state.request.id for p in progress}
        begun |= {p.state.request.id for p in progress}
        prompt_rows = sum(c.length for c in plan.chunks)
        assert len(plan.decoding) + prompt_rows <= max(budget, len(plan.decoding))
        if now == 0:
            assert prompt_rows == min(budget, waiting)
    if budget > len(lengths):
        assert len(begun) == len(lengths) or sum(lengths) > 30 * (budget - len(lengths))
