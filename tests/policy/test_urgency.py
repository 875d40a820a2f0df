"""vLLM + Priority: urgent requests are admitted first, displace relaxed ones, and keep the batch small enough for them."""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from adaserve.policy.urgency import Urgency, UrgentTurns
from adaserve.profile import Profile
from adaserve.request import RequestState
from tests.engines import PROFILE
from tests.scheduling.steps import decoding, names, request, scheduler, step, waiting

targets = st.sampled_from([None, 0.01, 0.02, 0.05])


def line(tpots: list[float | None], lengths: list[int]) -> list[RequestState]:
    """Running requests, the most urgent first."""
    states = [decoding(f"r{i}", tpot=t, prompt=p, slot=i) for i, (t, p) in enumerate(zip(tpots, lengths, strict=False))]
    return sorted(states, key=lambda s: Urgency().rank(s, 0.0))


@given(st.lists(targets, min_size=1, max_size=20), st.lists(st.integers(1, 60), min_size=20), st.floats(0.0001, 0.01))
def test_the_batch_is_the_largest_that_meets_the_tightest_target(
    tpots: list[float | None], lengths: list[int], cost: float
) -> None:
    """Against a plain search from the largest batch down. Those of the tightest target take part whatever it costs."""
    running = line(tpots, lengths)

    def forecast(rows: int, context: int) -> float:
        return cost * (rows + context / 100)

    chosen = list(UrgentTurns()(running, 0.0, forecast))
    tightest = running[0].request.targets.tpot
    if tightest is None:
        assert chosen == running
        return
    sure = sum(s.request.targets.tpot == tightest for s in running)
    for most in range(len(running), sure, -1):
        if forecast(most, sum(len(s.tokens) for s in running[:most])) <= tightest:
            break
    else:
        most = sure
    assert [s.request.id for s in chosen] == [s.request.id for s in running[:most]]


def test_requests_without_a_target_are_the_least_urgent() -> None:
    assert Urgency().rank(waiting("a"), 0.0) == math.inf
    assert Urgency().rank(waiting("b", tpot=0.01), 0.0) < Urgency().rank(waiting("c", tpot=0.02), 0.0)


SLOW = Profile("slow", {1: 1.0, 10: 10.0}, 0.0, {}, 0.0, 0.0, 0.0, 1.0)
"""Every row costs a millisecond."""


def test_relaxed_requests_sit_out_and_keep_their_pages() -> None:
    """Two urgent requests with a target of 3 ms leave room for one more row; when they end, all others decode."""
    made = scheduler("priority", slots=5, profile=SLOW)
    made.admit([request(f"relaxed{i}", 5, output=20, tpot=1.0, stem=i) for i in range(3)], 0.0)
    step(made, 0.0)
    made.admit([request(f"urgent{i}", 5, output=4, tpot=0.003, stem=9 + i) for i in range(2)], 0.0)
    step(made, 1.0)
    for now in (2.0, 3.0, 4.0):
        held = [list(made.state(slot).pages) for slot in range(5)]
        plan, _ = step(made, now)
        assert names(made, tuple(s for s in plan.decoding if s < 3)) == ["relaxed0"]
        assert len(plan.decoding) == 3 and plan.released == ()
        if now < 4.0:
            assert [made.state(s).pages for s in (1, 2)] == held[1:3]
    plan, _ = step(made, 5.0)
    assert names(made, plan.decoding) == ["relaxed0", "relaxed1", "relaxed2"]


def test_urgent_requests_overtake_and_displace() -> None:
    """With all slots taken, the urgent newcomer gets that of the most relaxed, youngest request, which comes back later."""
    made = scheduler("priority", slots=2)
    made.admit([request("a", 9, output=6, tpot=0.05, stem=1), request("b", 9, output=6, tpot=0.05, stem=2)], 0.0)
    step(made, 0.0)
    made.admit([request("c", 9, output=3, tpot=0.05, stem=3), request("d", 9, output=3, tpot=0.01, stem=4)], 0.0)
    plan, _ = step(made, 1.0)
    assert plan.released == (1,) and names(made, tuple(p.slot for p in plan.placed)) == ["d"]
    ended = []
    for now in range(2, 40):
        if not made.running and not made.waiting:
            break
        _, progress = step(made, float(now))
        ended += [(p.state.request.id, p.state.preemptions) for p in progress if p.state.finish is not None]
    assert ended[0] == ("d", 0) and {name for name, _ in ended} == {"a", "b", "c", "d"}
    assert dict(ended)["b"] >= 1 and dict(ended)["c"] == 0


def test_equals_do_not_displace_each_other() -> None:
    made = scheduler("priority", slots=1)
    made.admit([request("a", 9, tpot=0.05), request("c", 9, stem=2), request("b", 9, tpot=0.05, stem=1)], 0.0)
    order = []
    for now in range(30):
        if not made.running and not made.waiting:
            break
        _, progress = step(made, float(now))
        order += [(p.state.request.id, p.state.preemptions) for p in progress if p.state.finish is not None]
    assert order == [("a", 0), ("b", 0), ("c", 0)]


def test_page_shortage_takes_from_the_most_relaxed() -> None:
    """Growing requests pre-empt the most relaxed one although it is not the youngest."""
    made = scheduler("priority", pages=13, slots=3, reuse=False, profile=replace(PROFILE, verify_ms_by_rows={1: 0.001}))
    made.admit([request("relaxed", 3, output=20, tpot=1.0), request("a", 3, output=20, tpot=0.1, stem=1)], 0.0)
    step(made, 0.0)
    made.admit([request("b", 3, output=20, tpot=0.1, stem=2)], 0.0)
    preempted: list[str] = []
    for now in range(1, 120):
        if not made.running and not made.waiting:
            break
        _, progress = step(made, float(now))
        preempted += [p.state.request.id for p in progress if p.state.finish is not None and p.state.preemptions]
    assert preempted == ["relaxed"]
