"""Whom a policy spares: nobody drafts for them, and no draft model reads their prompts."""

from dataclasses import dataclass, replace

import pytest

from adaserve.policy.library import make_policy
from adaserve.policy.policy import Demand, RowShare, Scheduling
from adaserve.scheduling.scheduler import Drafting
from adaserve.step import StepOutcome
from tests.scheduling.steps import CONSTANTS, decoding, outcome, request, scheduler


@dataclass(frozen=True)
class Sparing:
    """Another scheduling, but for the requests that are spared."""

    inner: Scheduling
    spared: frozenset[str]

    @property
    def deepest(self) -> int:
        return self.inner.deepest

    def share(self, demand: Demand) -> RowShare:
        return replace(self.inner.share(demand), spared=self.spared)

    def learn(self, outcome: StepOutcome) -> None:
        """Nothing to learn."""


@pytest.mark.parametrize("spared", [frozenset(), frozenset({"b"})])
def test_the_draft_reads_along_but_for_who_is_spared(spared: frozenset[str]) -> None:
    policy = make_policy("spec:2", replace(CONSTANTS, batched_tokens=8))
    busy = scheduler(replace(policy, scheduling=Sparing(policy.scheduling, spared)))
    busy.admit([request("a", 4, output=40)], 0.0)
    plan = busy.plan(0.0)
    assert plan is not None
    busy.record(outcome(plan), 0.0)
    busy.admit([request("b", 20, output=40, stem=1)], 1.0)
    read, drafted = 0, 0
    for now in range(1, 12):
        plan = busy.plan(float(now))
        assert plan is not None
        slots = {busy.state(slot).request.id: slot for slot in (*plan.decoding, *(c.slot for c in plan.chunks))}
        read += sum(c.length for c in plan.catch_up if c.slot == slots.get("b"))
        drafted += sum(c is not None for c, slot in zip(plan.drafting, plan.decoding, strict=True) if slot == slots.get("b"))
        busy.record(outcome(plan), float(now))
    assert (read > 0, drafted > 0) == (not spared, not spared)


@pytest.mark.parametrize("lost", [frozenset(), frozenset({"strict"})])
def test_a_draft_catches_up_for_the_strictest_first_and_for_the_lost_last(lost: frozenset[str]) -> None:
    behind = [
        decoding(name, prompt=40, tpot=tpot, slot=slot) for slot, (name, tpot) in enumerate([("calm", 0.1), ("strict", 0.01)])
    ]
    drafting, catch_up = Drafting.MODEL.work(behind, [3, 3], [], {}, 50, lost)
    assert drafting == [None, None]
    assert [(chunk.slot, chunk.length) for chunk in catch_up] == ([(0, 40), (1, 10)] if lost else [(1, 40), (0, 10)])
