"""Whom a policy spares: nobody drafts for them, and no draft model reads their prompts."""

from dataclasses import dataclass, replace

import pytest

from adaserve.policy.library import make_policy
from adaserve.policy.policy import Demand, RowShare, Scheduling
from adaserve.step import StepOutcome
from tests.scheduling.steps import CONSTANTS, outcome, request, scheduler


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


@dataclass
class Watching:
    """Another scheduling that says of each step whether it was crowded."""

    inner: Scheduling
    crowded: list[bool]

    @property
    def deepest(self) -> int:
        return self.inner.deepest

    def share(self, demand: Demand) -> RowShare:
        assert demand.scene is not None
        self.crowded.append(demand.scene.crowded)
        return self.inner.share(demand)


@pytest.mark.parametrize(("slots", "pages"), [(2, 100), (9, 7)])
def test_it_is_crowded_while_somebody_finds_no_slot_or_no_pages(slots: int, pages: int) -> None:
    """Two of three fit; the third comes when they have ended."""
    policy = make_policy("spec:2", CONSTANTS)
    watching = Watching(policy.scheduling, [])
    busy = scheduler(replace(policy, scheduling=watching), slots=slots, pages=pages)
    busy.admit([request(name, 8, output=4, stem=stem) for stem, name in enumerate("ab")], 0.0)
    waiting = []
    for now in range(40):
        if now == 1:
            busy.admit([request("c", 8, output=4, stem=2)], 1.0)
        plan = busy.plan(float(now))
        waiting.append(busy.waiting > 0)
        if plan is None:
            break
        busy.record(outcome(plan), float(now))
    assert watching.crowded == waiting and any(waiting) and not waiting[0] and not waiting[-1]
