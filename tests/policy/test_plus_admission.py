"""Admission of `adaserve+`: who can still attain first, nobody waits for ever."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.policy.adaptive import Constants
from adaserve.policy.plus.admission import DueQueue, due_first
from adaserve.policy.plus.assembly import make_plus
from adaserve.policy.plus.parts import PlusConstants, PlusParts
from adaserve.profile import Profile
from adaserve.request import RequestState, Targets
from adaserve.simulate import Machine, simulate
from tests.policy.test_plus import requests
from tests.recordings import random_recording
from tests.scheduling.steps import decoding, waiting

BASELINE = 0.003  # nobody waits more than a second


def arrival(name: str, at: float, ttft: float | None = None) -> RequestState:
    state = waiting(name, arrived=at)
    return RequestState(replace(state.request, targets=Targets(ttft=ttft)), state.tokens)


def line(states: list[RequestState], margin: float = 1.0) -> DueQueue:
    queue = DueQueue(BASELINE, PlusConstants(reading_margin=margin, reading_rows=1000), None)
    for state in states:
        queue.push(state)
    return queue


def drained(queue: DueQueue, now: float) -> list[str]:
    order = []
    while (state := queue.first(now)) is not None:
        queue.take(state)
        order.append(state.request.id)
    return order


@given(st.lists(st.floats(0, 0.4), max_size=12))
def test_without_targets_and_in_time_the_order_is_that_of_arrival(times: list[float]) -> None:
    states = [arrival(f"r{i}", at) for i, at in enumerate(sorted(times))]
    assert drained(line(states), 0.45) == [s.request.id for s in states]


def test_a_stated_target_comes_earlier() -> None:
    states = [arrival("a", 0.0), arrival("b", 0.1, ttft=0.3), arrival("c", 0.2, ttft=5.0)]
    assert drained(line(states), 0.2) == ["b", "a", "c"]


def test_the_late_wait_behind_those_in_time() -> None:
    states = [arrival("late", 0.0), arrival("later", 0.1), arrival("in time", 0.5)]
    assert drained(line(states), 1.2) == ["in time", "late", "later"]


def test_who_cannot_be_read_in_time_any_more_waits_behind_the_others() -> None:
    """Reading was seen to take 0.1 s a row: three rows take 0.3 s, and with a margin of two 0.6 s."""
    for margin, expected in ((1.0, ["a", "b"]), (2.0, ["b", "a"])):
        queue = line([waiting("first", 3, arrived=0.0)], margin)
        for at in range(60):  # until it is learned
            state = queue.first(float(at))
            assert state is not None
            queue.take(state)
            state.slot = 0
            state.decoding_since = at + 0.3
            assert queue.first(at + 0.5) is None
            queue.push(waiting("next", 3, arrived=float(at)))
        last = queue.first(60.0)
        assert last is not None
        queue.drop(last)
        queue.push(waiting("a", 3, arrived=60.5))
        queue.push(waiting("b", 3, arrived=60.9))
        assert drained(queue, 61.0) == expected


@pytest.mark.parametrize("decoding_since", [None, 9.95], ids=["others never end", "others always come back"])
def test_the_late_get_a_turn(decoding_since: float | None) -> None:
    queue, turn = line([arrival("late", 0.0)]), PlusConstants().late_turn
    order = []
    for i in range(2 * turn):
        other = arrival(f"r{i}", 9.9)
        other.decoding_since = decoding_since
        queue.push(other)
        first = queue.first(10.0)
        assert first is not None
        queue.take(first)
        order.append(first.request.id)
    assert order.index("late") == turn - 1


def test_who_has_begun_to_answer_goes_on_first() -> None:
    begun = arrival("begun", 0.0)
    begun.decoding_since = 0.1
    queue = line([arrival("a", 5.0)])
    queue.put_back(begun)
    assert drained(queue, 5.0) == ["begun", "a"]


@given(st.lists(st.tuples(st.floats(0, 3), st.none() | st.floats(0.01, 3)), max_size=20), st.randoms(use_true_random=False))
def test_the_queue_holds_what_was_put_in(asked: list[tuple[float, float | None]], rng) -> None:
    states = [arrival(f"r{i}", at, ttft) for i, (at, ttft) in enumerate(asked)]
    queue = line(states)
    dropped = rng.sample(states, len(states) // 2)
    for state in dropped:
        queue.drop(state)
    left = {s.request.id for s in states} - {s.request.id for s in dropped}
    assert len(queue) == len(left) and {s.request.id for s in queue} == left
    assert set(drained(queue, 1.5)) == left


def test_nobody_gets_a_slot_while_much_is_to_be_read() -> None:
    queue = DueQueue(BASELINE, PlusConstants(reading_margin=1.0, reading_rows=5), None)
    states = [waiting(f"r{i}", 3, arrived=float(i)) for i in range(4)]
    for state in states:
        queue.push(state)
    for slot in range(2):
        taken = queue.first(0.0)
        assert taken is states[slot]
        queue.take(states[slot])
        states[slot].slot = slot
    assert queue.first(0.0) is None and len(queue) == 2  # six tokens are to be read
    states[0].computed = 2
    assert queue.first(0.0) is states[2]
    queue.take(states[2])
    states[2].slot = 2
    assert queue.first(0.0) is None
    states[1].slot = None  # ended, or lost its slot
    assert queue.first(0.0) is states[3]


def test_prompts_that_are_due_are_read_first() -> None:
    runs, plain, due, late = (
        decoding("runs"),
        arrival("plain", 0.0),
        arrival("due", 0.5, ttft=1.0),
        arrival("late", 0.0, ttft=0.2),
    )
    found = due_first([plain, late, runs, due], 1.0, lambda rows, context: math.inf)
    assert [s.request.id for s in found] == ["due", "plain", "late", "runs"]
    assert due_first([plain, runs], 1.0, lambda rows, context: math.inf) == [plain, runs]


@pytest.mark.parametrize("admitting", [True, False])
def test_past_capacity_some_attain_instead_of_nobody(admitting: bool) -> None:
    """Twice the load that one slot carries: in order of arrival everybody ends up late, else about half are served in time."""
    profile = Profile("small", {1: 10.0, 64: 20.0}, 0.0, {}, 0.0, 0.0, 0.0, 10.0)
    timed = requests(100, 0.5, 0.1, output=100)  # 100 tokens take a second; nobody waits more than 3.3 seconds
    parts = PlusParts() if admitting else PlusParts().without("admitting")
    policy = make_plus("p", Constants(verify_rows=8, draft_rows=8), parts, PlusConstants())
    played = simulate(timed, policy, Machine(profile, slots=1), random_recording(np.random.default_rng(0)))
    share = sum(r.attained is True for r in played.results) / len(played.results)
    assert len(played.results) == 100 and all(r.completed for r in played.results)
    assert share > 0.35 if admitting else share < 0.2
