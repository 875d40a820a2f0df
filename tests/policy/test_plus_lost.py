"""Requests that cannot attain any more: when they count as lost, and what is still done for them."""

from dataclasses import replace

import pytest

from adaserve.latency import LatencyModel
from adaserve.padding import Unpadded
from adaserve.policy.plus.assembly import make_plus
from adaserve.policy.plus.parts import PlusConstants, PlusParts
from adaserve.policy.policy import Demand, Scene
from adaserve.step import StepShape
from tests.profiles import STEEP
from tests.scheduling.steps import PAPER, decoding, outcome, request, scheduler, waiting


def test_lost_is_judged_by_what_drafting_can_still_bring() -> None:
    """A step without drafts takes a token past the target, one with an accepted draft does not: such a request is drafted for."""
    parts = PlusParts()
    scheduling = make_plus("p", PAPER, parts, PlusConstants()).scheduling
    behind = decoding("a", produced=3, tpot=0.010)  # five tokens to come in what is left of 70 ms
    lost = {}
    for now in (0.025, 0.069):
        scene = Scene(now, [behind], [], 0, LatencyModel(STEEP), Unpadded(), crowded=False)
        lost[now] = scheduling.share(Demand(1, 0, scene)).lost
    assert 0.025 + 5 * LatencyModel(STEEP).predict(StepShape(1, 0)) > 0.070  # plain decoding would be late
    assert lost[0.025] == frozenset() and lost[0.069] == {"a"}


@pytest.mark.parametrize("others", [0, 1])
def test_who_is_lost_is_drafted_for_where_that_takes_time_from_nobody(others: int) -> None:
    late = [decoding(name, produced=3, tpot=0.010) for name in "ab"]
    for decodes, waits in ((others, 0), (0, others)):
        running = [*late, *[decoding("c") for _ in range(decodes)]]
        scene = Scene(0.069, running, [], waits, LatencyModel(STEEP), Unpadded(), crowded=False)
        share = make_plus("p", PAPER, PlusParts(), PlusConstants()).scheduling.share(Demand(len(running), 0, scene))
        assert share.lost == {"a", "b"} and share.spared == (share.lost if others else frozenset())
        assert decodes or (share.depth > 0) == (not others)


@pytest.mark.parametrize("decodes", [0, 1])
@pytest.mark.parametrize("reads", [0, 1])
def test_who_is_lost_is_drafted_for_where_others_wait_for_its_slot(decodes: int, reads: int) -> None:
    running = [*[decoding(name, produced=3, tpot=0.010) for name in "ab"], *[decoding("c", tpot=0.1) for _ in range(decodes)]]
    backlog = [waiting("d", prompt=30) for _ in range(reads)]
    scene = Scene(0.069, running, backlog, 5, LatencyModel(STEEP), Unpadded(), crowded=True)
    share = make_plus("p", PAPER, PlusParts(), PlusConstants()).scheduling.share(Demand(len(running), 30 * reads, scene))
    assert share.lost == {"a", "b"} and not share.spared and share.depth > 0


@pytest.mark.parametrize("output", [7, 7000])
def test_the_draft_reads_for_who_is_lost_where_that_pays(output: int) -> None:
    """However crowded it is: for a few tokens more nobody reads a long prompt, and for the lost no target is at stake."""
    dear = LatencyModel(replace(STEEP, draft_step_ms_by_rows={1: 1.0, 64: 30.0}))
    ready, late = decoding("a"), waiting("b", prompt=400, produced=1, output=output, tpot=0.010)
    late.slot, late.computed, late.decoding_since = 1, 400, 0.0
    ready.draft_computed = len(ready.tokens) - 1
    scene = Scene(99.0, [ready, late], [], 5, dear, Unpadded(), crowded=True)
    share = make_plus("p", PAPER, PlusParts(), PlusConstants()).scheduling.share(Demand(2, 0, scene))
    assert share.lost == {"b"} and share.depth > 0
    assert share.spared == ({"b"} if output == 7 else frozenset())


@pytest.mark.parametrize("all_lost", [False, True])
def test_nobody_else_is_kept_waiting_while_a_draft_reads_for_the_lost(all_lost: bool) -> None:
    """Where somebody attains it reads for the lost what it reads in any case."""
    constants = PlusConstants()
    behind = [decoding(f"{i}", produced=3, tpot=0.010, prompt=800) for i in range(4)]
    ready = [decoding("late", produced=3, tpot=0.010), *([] if all_lost else [decoding("calm", tpot=0.5)])]
    for state in ready:
        state.draft_computed = len(state.tokens) - 1
    scene = Scene(0.069, [*ready, *behind], [], 5, LatencyModel(STEEP), Unpadded(), crowded=True)
    share = make_plus("p", PAPER, PlusParts(), constants).scheduling.share(Demand(len(scene.decoding), 0, scene))
    assert share.depth > 0 and len(share.lost) == 5
    assert (share.catch_up > constants.read_least) == all_lost


def test_who_is_lost_needs_nothing_in_a_step() -> None:
    busy = scheduler("adaserve+", constants=PAPER)
    busy.admit([request("a", 8, output=30, tpot=1e-6)], 0.0)
    needs = []
    for now in range(1, 5):
        plan = busy.plan(float(now))
        assert plan is not None
        busy.record(outcome(plan), float(now))
        needs += plan.need
    assert needs and not any(needs)
