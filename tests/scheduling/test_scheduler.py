"""The scheduler alone: needs, shares, prefix reuse, pre-emption, with outcomes made up by the test."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaserve.policy.adaptive import AdaptiveScheduling, Constants
from adaserve.policy.library import Overrides, make_policy
from adaserve.policy.policy import Demand, Scene
from adaserve.request import FinishReason, Request, RequestState
from adaserve.scheduling.need import need
from adaserve.scheduling.scheduler import Drafting
from adaserve.step import READY_LAG, StepPlan
from tests.scheduling import steps
from tests.scheduling.steps import CONSTANTS, POLICIES, outcome, request, scheduler


@given(elapsed=st.floats(0, 100), step=st.floats(0.001, 1), tpot=st.floats(0.001, 1), produced=st.integers(1, 200))
def test_meeting_the_need_meets_the_target(elapsed: float, step: float, tpot: float, produced: int) -> None:
    """Gaining A_i tokens puts the request exactly on target, by the very definition of TPOT (paper, section 3)."""
    state = RequestState(request("a", 3, tpot=tpot), [1, 2, 3, *[7] * produced], decoding_since=5.0)
    wanted = need(state, 5.0 + elapsed, step)
    tokens_after = produced - 1 + wanted
    if tokens_after > 0:
        assert (elapsed + step) / tokens_after == pytest.approx(tpot, rel=1e-6)


def test_no_target_no_need() -> None:
    """A request without an SLO needs nothing."""
    assert need(RequestState(request("a", 3), [1, 2, 3, 7], decoding_since=0.0), 50.0, 0.1) == 0.0


def test_prompts_ride_along_in_chunks() -> None:
    """A prompt is computed in chunks of prompt_rows while others decode; the chunk that ends it draws."""
    made = scheduler()
    made.admit([request("a", 3)], 0.0)
    first = made.plan(0.0)
    assert first is not None and [(c.length, c.draws) for c in first.chunks] == [(3, True)]
    made.record(outcome(first), 0.1)
    made.admit([request("b", 14, stem=1)], 0.0)
    lengths = []
    for step in range(3):
        plan = made.plan(0.2 + step)
        assert plan is not None and len(plan.decoding) == 1
        lengths += [(c.length, c.draws) for c in plan.chunks]
        made.record(outcome(plan), 0.3 + step)
    assert lengths == [(6, False), (6, False), (2, True)]


def test_continuous_computes_prompts_first_and_alone() -> None:
    """vLLM's order: nobody decodes while a prompt waits, and nobody drafts."""
    made = scheduler("continuous")
    made.admit([request("a", 3)], 0.0)
    plan = made.plan(0.0)
    assert plan is not None
    made.record(outcome(plan), 0.1)
    made.admit([request("b", 40, stem=1)], 0.0)
    prompt = made.plan(0.2)
    assert prompt is not None and prompt.decoding == () and [c.length for c in prompt.chunks] == [40]
    made.record(outcome(prompt), 0.3)
    both = made.plan(0.4)
    assert both is not None and len(both.decoding) == 2 and both.chunks == () and both.depth == 0 and both.catch_up == ()


def test_shared_prefixes_are_computed_once() -> None:
    """A second request with the same prompt finds its full pages computed, the draft's too."""
    made = scheduler(constants=replace(CONSTANTS, idle_prompt_rows=100))
    made.admit([request("a", 18)], 0.0)
    plan = made.plan(0.0)
    assert plan is not None
    made.record(outcome(plan), 0.1)
    made.admit([request("b", 18)], 0.0)
    plan = made.plan(0.2)
    assert plan is not None and [(c.start, c.length) for c in plan.chunks] == [(16, 2)]
    assert [(c.start, c.length) for c in plan.catch_up] == [(16, 2)]


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_what_a_step_filled_is_found_however_late_it_is_offered(early: bool, cancelled: bool) -> None:
    """Whether there was time to offer pages or not: who looks for them finds them, also when their request is gone."""
    made = scheduler(constants=replace(CONSTANTS, idle_prompt_rows=100))
    made.admit([request("a", 18)], 0.0)
    steps.step(made, 0.0)
    if early:
        made.publish()
    if cancelled:
        made.cancel({"a"})
    made.check()
    made.admit([request("b", 18)], 0.1)
    plan, _ = steps.step(made, 0.2)
    assert [(c.start, c.length) for c in plan.chunks] == [(16, 2)]
    made.check()


def test_a_draft_left_behind_catches_up_before_it_speculates() -> None:
    """Steps of depth 0 leave the draft behind; it then computes what it missed, at most READY_LAG tokens beside speculation."""
    # Two rows: Eq. 8 gives depth 0 as long as two requests decode, then depth 1.
    made = scheduler(constants=replace(CONSTANTS, verify_rows=2))
    made.admit([request("a", 5, output=100), request("b", 5, output=40, stem=1)], 0.0)
    depths = []
    for step in range(80):
        plan = made.plan(float(step))
        assert plan is not None
        made.record(outcome(plan), step + 0.5)
        if len(plan.decoding) == 2:
            assert plan.depth == 0 and plan.catch_up == ()
        elif plan.decoding:
            depths.append(plan.depth)
            assert sum(c.length for c in plan.catch_up) <= CONSTANTS.prompt_rows
            if plan.drafting[0] is not None:
                assert plan.depth == 1 and plan.drafting[0].length <= READY_LAG
                break
    else:
        pytest.fail("the draft never caught up")
    assert len(depths) > 4, "it had 40 tokens to catch up with, 6 a step"


def test_cancel_frees_everything() -> None:
    """Waiting and running requests end at once, and the pages are free."""
    made = scheduler(slots=1)
    made.admit([request("a", 9), request("b", 9)], 0.0)
    plan = made.plan(0.0)
    assert plan is not None
    made.record(outcome(plan), 0.1)
    ended = made.cancel({"a", "b", "nobody"})
    assert {p.state.request.id for p in ended} == {"a", "b"} and all(p.state.finish is FinishReason.CANCELLED for p in ended)
    assert made.usage() == 0 and made.running == made.waiting == 0
    assert made.plan(0.2) is None


@given(
    n=st.integers(0, 100),
    constants=st.builds(
        Constants,
        verify_rows=st.integers(1, 512),
        draft_rows=st.integers(0, 128),
        depth_offset=st.integers(0, 8),
        width_offset=st.integers(0, 3),
        depth_min=st.integers(0, 2),
        depth_max=st.integers(2, 40),
        width_max=st.integers(1, 40),
    ),
)
def test_depth_and_width_follow_equations_8_and_9(n: int, constants: Constants) -> None:
    """Within their bounds, falling with the number of requests, and never more nodes than an ancestor mask has bits."""
    share = AdaptiveScheduling(constants).share(Demand(n, 0))
    more = AdaptiveScheduling(constants).share(Demand(n + 1, 0))
    assert constants.depth_min <= share.depth <= constants.depth_max
    assert 1 <= share.width <= constants.width_max and share.depth * share.width <= 63
    assert more.depth <= share.depth


class Tables:
    """The slots' page tables as an executor keeps them, from what plans say."""

    def __init__(self) -> None:
        self._pages: dict[int, list[int]] = {}

    def settle(self, plan: StepPlan) -> None:
        for slot in plan.released:
            del self._pages[slot]
        for placement in plan.placed:
            assert placement.slot not in self._pages, "two requests in one slot"
            self._pages[placement.slot] = []
        for grant in plan.grants:
            assert len(self._pages[grant.slot]) == grant.first
            self._pages[grant.slot] += grant.pages

    def __getitem__(self, slot: int) -> list[int]:
        return self._pages[slot]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), policy=st.sampled_from(POLICIES), pages=st.integers(14, 40))
def test_every_admitted_request_ends_exactly_once(data: st.DataObject, policy: str, pages: int) -> None:
    """Under random arrivals, gains, cancellations and scarce pages: accounts stay right and nobody is forgotten."""
    made = scheduler(policy, pages=pages, slots=3, reuse=data.draw(st.booleans()))
    tables = Tables()
    open_ids: set[str] = set()
    ended: list[str] = []
    for step in range(40):
        if step < 20 and data.draw(st.booleans()):
            name = f"r{step}"
            facts = {"tpot": data.draw(st.sampled_from([None, 0.002, 0.02])), "slo_class": data.draw(st.sampled_from("ab"))}
            made.admit([request(name, data.draw(st.integers(1, 24)), data.draw(st.integers(1, 16)), stem=step % 3, **facts)], 0.0)
            open_ids.add(name)
        if open_ids and data.draw(st.integers(0, 9)) == 0:
            ended += [p.state.request.id for p in made.cancel({data.draw(st.sampled_from(sorted(open_ids)))})]
        plan = made.plan(float(step))
        made.check()
        if plan is None:
            assert made.running == made.waiting == 0
        else:
            tables.settle(plan)
            for slot, room in zip(plan.decoding, plan.room, strict=True):
                state = made.state(slot)
                assert tables[slot] == state.pages
                assert len(state.tokens) + min(room, plan.depth) <= len(state.pages) * 4, "a path would leave its pages"
            for chunk in plan.chunks:
                assert tables[chunk.slot] == made.state(chunk.slot).pages
            ended += [
                p.state.request.id
                for p in made.record(outcome(plan, data.draw(st.integers(1, 4))), step + 0.5)
                if p.state.finish is not None
            ]
            made.check()
        open_ids -= set(ended)
    for step in range(1000):
        plan = made.plan(100.0 + step)
        if plan is None:
            break
        ended += [p.state.request.id for p in made.record(outcome(plan), 100.5 + step) if p.state.finish is not None]
    assert not open_ids - set(ended) and len(ended) == len(set(ended))
    assert made.usage() == 0


@pytest.mark.parametrize(("drafting", "each"), [(Drafting.MODEL, 3 * 2), (Drafting.BOTH, 3 * 2 + 3)])
def test_look_up_beside_a_model_adds_a_chain_of_nodes(drafting: Drafting, each: int) -> None:
    """Nodes are priced one by one, and there is a price for as many as are proposed."""
    made = scheduler("adaserve+", overrides=Overrides(depth=3, width=2), drafting=drafting)
    made.admit([request("a", 3, output=40)], 0.0)
    steps.step(made, 0.0)
    plan, _ = steps.step(made, 0.1)
    assert plan.limits.nodes == each and len(plan.limits.price) == each + 1


def test_who_is_hopeless_is_refused_and_the_others_are_not() -> None:
    """The policy sees all who run or wait, those of the same call included."""
    seen: list[list[str]] = []

    def hopeless(newcomer: Request, scene: Scene) -> bool:
        seen.append([s.request.id for s in scene.decoding])
        return newcomer.id == "b"

    made = scheduler(replace(make_policy("adaserve", CONSTANTS), hopeless=hopeless))
    refused = made.admit([request("a", 3), request("b", 3), request("c", 3)], 0.0)
    assert [(p.state.request.id, p.state.finish, p.tokens) for p in refused] == [("b", FinishReason.REFUSED, ())]
    assert (made.waiting, seen) == (2, [[], ["a"], ["a"]])
