"""Waiting queues against plain lists."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.policy.fair import FairQueue
from adaserve.policy.queues import ArrivalQueue, RankedQueue, WaitingQueue
from adaserve.request import RequestState
from tests.scheduling.steps import waiting


@dataclass(frozen=True)
class ByPrompt:
    """The shorter the prompt, the more important."""

    def level(self, state: RequestState) -> float:
        return len(state.request.prompt)

    def rank(self, state: RequestState, now: float) -> float:
        return self.level(state)


operations = st.lists(st.tuples(st.sampled_from(["push", "push", "take", "back", "drop"]), st.integers(1, 4)), max_size=80)


@pytest.mark.parametrize("ranked", [False, True])
@given(todo=operations, rng=st.randoms())
def test_queues_are_ordered_lists(ranked: bool, todo: list[tuple[str, int]], rng) -> None:
    """Push at the end, put back at the front, take the first: of all, or of those that rank highest."""
    queue: WaitingQueue = RankedQueue(ByPrompt()) if ranked else ArrivalQueue()
    line: list[RequestState] = []
    gone: list[RequestState] = []
    for number, (act, size) in enumerate(todo):
        if act == "push":
            line.append(waiting(f"r{number}", size, arrived=float(number)))
            queue.push(line[-1])
        elif act == "back" and gone:
            line.insert(0, gone.pop())
            queue.put_back(line[0])
        elif act == "take" and line:
            first = queue.first(0.0)
            assert first is (min(line, key=lambda s: len(s.request.prompt)) if ranked else line[0])
            queue.take(first)
            line = [s for s in line if s is not first]
            gone.append(first)
        elif act == "drop" and line:
            dropped = line.pop(rng.randrange(len(line)))
            queue.drop(dropped)
        assert len(queue) == len(line) and {id(s) for s in queue} == {id(s) for s in line}
    if not line:
        assert queue.first(0.0) is None


@pytest.mark.parametrize("queue", [ArrivalQueue(), RankedQueue(ByPrompt()), FairQueue()])
def test_looking_changes_nothing(queue: WaitingQueue) -> None:
    assert queue.first(0.0) is None and len(queue) == 0
    states = [waiting(f"r{i}", 3 - i) for i in range(3)]
    for state in states:
        queue.push(state)
    assert queue.first(0.0) is queue.first(1.0) and len(queue) == 3


@dataclass(frozen=True)
class Impatient(ByPrompt):
    """Who has waited for more than ten seconds is as important as can be."""

    def rank(self, state: RequestState, now: float) -> float:
        return 0.0 if now - state.request.arrived > 10 else self.level(state)


def test_waiting_may_raise_a_request() -> None:
    queue = RankedQueue(Impatient())
    old, young = waiting("old", 9, arrived=0.0), waiting("young", 1, arrived=8.0)
    queue.push(old)
    queue.push(young)
    assert queue.first(9.0) is young
    assert queue.first(10.5) is old
    assert queue.first(30.0) is old, "of two that waited too long the one that came first"
