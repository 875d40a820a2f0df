"""When a scene is crowded: somebody would come now, and finds no slot or no pages."""

from dataclasses import dataclass, field, replace

import pytest

from adaserve.policy.discipline import Discipline
from adaserve.policy.library import make_policy
from adaserve.policy.plus.admission import DueQueue
from adaserve.policy.plus.parts import PlusConstants
from adaserve.policy.policy import Demand, RowShare, Scheduling
from tests.scheduling.steps import CONSTANTS, outcome, request, scheduler


@dataclass
class Watching:
    """Another scheduling that notes of each step whether it was crowded."""

    inner: Scheduling
    crowded: list[bool] = field(default_factory=list)

    @property
    def deepest(self) -> int:
        return self.inner.deepest

    def share(self, demand: Demand) -> RowShare:
        assert demand.scene is not None
        self.crowded.append(demand.scene.crowded)
        return self.inner.share(demand)


@pytest.mark.parametrize(("slots", "pages"), [(2, 100), (9, 7)])
@pytest.mark.parametrize("later", [0, 1])
def test_while_somebody_finds_no_slot_or_no_pages(slots: int, pages: int, later: int) -> None:
    """Two of three fit; the third comes with them or in the next step, and gets in when they have ended."""
    policy = make_policy("spec:2", CONSTANTS)
    watching = Watching(policy.scheduling)
    busy = scheduler(replace(policy, scheduling=watching), slots=slots, pages=pages)
    busy.admit([request(name, 8, output=4, stem=stem) for stem, name in enumerate("ab")], 0.0)
    waiting = []
    for now in range(40):
        if now == later:
            busy.admit([request("c", 8, output=4, stem=2)], 1.0)
        plan = busy.plan(float(now))
        waiting.append(busy.waiting > 0)
        if plan is None:
            break
        busy.record(outcome(plan), float(now))
    assert watching.crowded == waiting and any(waiting[later:]) and not any(waiting[:later]) and not waiting[-1]


@pytest.mark.parametrize("slots", [1, 9])
def test_not_while_the_queue_lets_nobody_come(slots: int) -> None:
    """A long prompt is being read, and until it is nearly read the next one is not to come, whether there is a slot or not."""
    policy = make_policy("adaserve", CONSTANTS)
    watching = Watching(policy.scheduling)
    queue = Discipline(lambda baseline: DueQueue(baseline, PlusConstants(reading_rows=20), None))
    busy = scheduler(replace(policy, scheduling=watching, discipline=queue), slots=slots)
    busy.admit([request("a", 80, output=40)], 0.0)
    told: dict[bool, set[bool]] = {True: set(), False: set()}
    for now in range(30):
        if now == 1:
            busy.admit([request("b", 8, output=4, stem=1)], 1.0)
        plan = busy.plan(float(now))
        if plan is None:
            break
        if busy.waiting:
            unread = 80 - busy.state(0).computed
            told[unread >= 20].add(watching.crowded[-1])
        busy.record(outcome(plan), float(now))
    assert told == {True: {False}, False: {True} if slots == 1 else set()}
