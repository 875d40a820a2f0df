"""Newcomers wait while those who decode cannot bear the steps that they have, and no longer than they can."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.metrics import TTFT_LIMIT_PER_BASELINE
from adaserve.policy.adaptive import Constants
from adaserve.policy.plus.admission import DueQueue
from adaserve.policy.plus.assembly import make_plus
from adaserve.policy.plus.parts import PlusConstants, PlusParts
from adaserve.policy.plus.slack import bearable
from adaserve.policy.plus.strain import Strain
from adaserve.profile import Profile
from adaserve.request import RequestState, Targets
from adaserve.simulate import Machine, simulate
from tests.policy.test_plus import requests
from tests.recordings import random_recording
from tests.scheduling.steps import decoding, waiting

BASELINE = 0.003
LIMIT = TTFT_LIMIT_PER_BASELINE * BASELINE
C = PlusConstants()
CROWDED = Profile("small", {1: 10.0, 4: 12.0, 12: 30.0, 64: 160.0}, 0.0, {}, 0.0, 0.0, 0.0, 10.0)
"""Four at once cost little, twelve much."""


def strained(slots: int = 1, short: int = 1, now: float = 0.001) -> Strain:
    """So many requests decode; `short` of them cannot bear steps of 20 ms."""
    states = [decoding(f"s{i}", tpot=0.004 if i < short else 1.0, slot=i) for i in range(slots)]
    strain = Strain(C.hold_pace)
    strain.note(states, 0.020, 1.0, slots)
    assert strain.share(now) == pytest.approx(short / slots)
    return strain


@given(
    st.lists(st.tuples(st.none() | st.floats(0.001, 0.1), st.integers(1, 7), st.booleans()), max_size=12),
    st.floats(0, 0.2),
    st.floats(0.001, 0.1),
    st.floats(1, 3),
)
def test_the_share_is_of_those_who_still_run_and_cannot_bear_it(
    facts: list[tuple[float | None, int, bool]], now: float, seconds: float, gain: float
) -> None:
    states = [decoding(f"s{i}", produced, tpot, slot=i) for i, (tpot, produced, _) in enumerate(facts)]
    strain = Strain(1.0)
    assert strain.share(now) == 0.0
    strain.note(states, seconds, gain, max(1, len(states)))
    for state, (_, _, ended) in zip(states, facts, strict=True):
        state.slot = None if ended else state.slot
    borne = [bearable(s, now, gain, 1.0) for s in states if s.slot is not None]
    expected = sum(most is not None and most < seconds for most in borne) / max(1, len(states))
    assert strain.share(now) == pytest.approx(expected)


def queue_of(strain: Strain | None, *states: RequestState, row: float = 0.001) -> DueQueue:
    """A queue that has learned that a prompt row takes `row` seconds to be read; 0: that has learned nothing."""
    queue = DueQueue(BASELINE, replace(C, learning=replace(C.learning, reading_rate=1.0)), strain)
    if row:
        reader = waiting("reader", 4, arrived=-1.0)
        queue.push(reader)
        taken = queue.first(-1.0)
        assert taken is reader
        queue.take(reader)
        reader.slot, reader.computed, reader.decoding_since = 99, 3, -1.0 + 4 * row
    for state in states:
        queue.push(state)
    return queue


@pytest.mark.parametrize(("slots", "short", "held"), [(1, 1, True), (100, 6, True), (100, 5, False), (3, 0, False)])
def test_newcomers_are_held_while_many_are_short(slots: int, short: int, held: bool) -> None:
    state = waiting("new", arrived=0.0)
    queue = queue_of(strained(slots, short), state)
    assert queue.first(0.001) is (None if held else state)
    assert len(queue) == 1


def test_they_are_held_as_long_as_they_can_wait() -> None:
    for ttft in (None, 0.5):
        state = waiting("new", 10, arrived=0.0, ttft=ttft)
        queue = queue_of(strained(), state)
        last = C.hold_until * (LIMIT if ttft is None else ttft) - 0.010  # it takes 10 ms to be read
        assert queue.first(last - 0.001) is None
        assert queue.first(last + 0.001) is state


def test_nobody_is_held_in_whose_line_somebody_must_be_read_now() -> None:
    """The second one takes 0.6 s and is due at 0.95: it must begin at 0.25, and the first one before it."""
    states = waiting("a", 10, arrived=0.0, ttft=0.90), waiting("b", 600, arrived=0.0, ttft=0.95)
    queue = queue_of(strained(), *states)
    assert queue.first(0.2) is None
    assert queue.first(0.25) is states[0]


def test_nobody_is_held_before_anything_was_read() -> None:
    state = waiting("new", arrived=0.0)
    assert queue_of(strained(), state, row=0.0).first(0.001) is state


def test_nobody_is_held_for_those_who_have_gone() -> None:
    """Else an engine in which nobody runs would wait for the last ones' sake."""
    states = [decoding("gone", tpot=0.004)]
    strain = Strain(C.hold_pace)
    strain.note(states, 0.020, 1.0, 1)
    state = waiting("new", arrived=0.0)
    queue = queue_of(strain, state)
    assert queue.first(0.001) is None
    states[0].slot = None
    assert queue.first(0.001) is state


def test_who_has_begun_is_not_held_and_the_late_stand_behind_those_who_are() -> None:
    begun, late, new = waiting("begun", produced=2, arrived=0.0), waiting("late", arrived=-2 * LIMIT), waiting("new", arrived=0.0)
    begun.decoding_since = 0.0
    assert queue_of(strained(), begun, new).first(0.001) is begun
    assert queue_of(strained(), late).first(0.001) is late
    assert queue_of(strained(), late, new).first(0.001) is None


@pytest.mark.parametrize("holding", [True, False])
def test_bursts_are_smoothed(holding: bool) -> None:
    """Twelve requests in a second, of which four together are fast enough; first tokens have 3.3 seconds."""
    parts = PlusParts() if holding else PlusParts().without("holding")
    policy = make_plus("p", Constants(verify_rows=16, draft_rows=8, prompt_rows=16), parts, PlusConstants())
    timed = requests(12, 0.1, 0.016, prompt=4, output=40)
    played = simulate(timed, policy, Machine(CROWDED, slots=12), random_recording(np.random.default_rng(0)))
    share = sum(r.attained is True for r in played.results) / len(played.results)
    assert share > 0.9 if holding else share < 0.7


@pytest.mark.parametrize(("count", "prompt", "ttft"), [(6, 20, 1.0), (6, 60, 2.0), (12, 60, 3.0)])
def test_bursts_with_first_tokens_to_keep_lose_little(count: int, prompt: int, ttft: float) -> None:
    """Who is held for others' sake must still be in time."""
    early = requests(4, 0.01, 0.0125, prompt=4, output=150)
    burst = [
        (1.0, replace(r, id=f"b{r.id}", seed=100 + i, targets=Targets(ttft=ttft)))
        for i, (_, r) in enumerate(requests(count, 0.0, None, prompt=prompt, output=20))
    ]
    attained = []
    for parts in (PlusParts(), PlusParts().without("holding")):
        policy = make_plus("p", Constants(verify_rows=16, draft_rows=8, prompt_rows=64), parts, PlusConstants())
        played = simulate([*early, *burst], policy, Machine(CROWDED, slots=24), random_recording(np.random.default_rng(0)))
        attained.append(sum(r.attained is True for r in played.results))
    assert attained[0] >= attained[1] - 1


@pytest.mark.parametrize("tpot", [0.0001, 0.012, None])
def test_everybody_ends(tpot: float | None) -> None:
    """Whatever is asked for, also what nobody can have."""
    profile = Profile("small", {1: 10.0, 64: 80.0}, 0.0, {}, 0.0, 0.0, 0.0, 10.0)
    policy = make_plus("p", Constants(verify_rows=8, draft_rows=8), PlusParts(), PlusConstants())
    played = simulate(requests(30, 0.02, tpot), policy, Machine(profile, slots=8), random_recording(np.random.default_rng(0)))
    assert len(played.results) == 30 and all(r.completed for r in played.results)
