"""FastServe: levels against a job that counts its quanta one iteration at a time; and what they do to a batch."""

from hypothesis import given
from hypothesis import strategies as st

from adaserve.policy.levels import LevelTurns, SkipJoin
from adaserve.policy.library import Overrides
from tests.scheduling.steps import decoding, names, request, scheduler, step, waiting

rankings = st.builds(SkipJoin, quantum=st.integers(1, 9), prompt_rows=st.integers(1, 40), levels=st.integers(1, 7))


def never(rows: int, context: int) -> float:
    raise AssertionError("levels do not depend on predictions")


@given(ranking=rankings, prompt=st.integers(1, 300), produced=st.integers(0, 400))
def test_levels_are_those_of_a_job_that_uses_up_quanta(ranking: SkipJoin, prompt: int, produced: int) -> None:
    """The slow twin: joins the first level whose quantum holds its prompt, then spends its iterations one after the other."""
    cost = -(-prompt // ranking.prompt_rows)
    quanta = [ranking.quantum * 2**level for level in range(ranking.levels)]
    level = next((i for i, quantum in enumerate(quanta) if quantum >= cost), ranking.levels - 1)
    left = quanta[level]
    for number in range(produced):
        for _ in range(cost if number == 0 else 1):
            if left == 0 and level < ranking.levels - 1:
                level += 1
                left = quanta[level]
            left = max(left - 1, 0) if level < ranking.levels - 1 else 1
    if left == 0 and level < ranking.levels - 1:
        level += 1
    assert ranking.level(waiting("a", prompt, produced)) == level


@given(ranking=rankings, prompt=st.integers(1, 300), longer=st.integers(0, 200), produced=st.integers(1, 400))
def test_nobody_ever_rises_but_by_waiting(ranking: SkipJoin, prompt: int, longer: int, produced: int) -> None:
    assert ranking.level(waiting("a", prompt + longer)) >= ranking.level(waiting("a", prompt))
    state = decoding("a", produced, prompt=prompt)
    assert ranking.level(state) >= ranking.level(decoding("a", produced - 1, prompt=prompt))
    state.last_token_at = 10.0
    assert ranking.rank(state, 10.0 + ranking.patience) == ranking.level(state)
    assert ranking.rank(state, 10.1 + ranking.patience) == 0


def test_the_highest_take_part() -> None:
    ranking = SkipJoin(quantum=4, prompt_rows=8)
    running = sorted((decoding(f"r{n}", n, slot=n) for n in (60, 3, 20, 1, 9)), key=lambda s: ranking.rank(s, 0.0))
    assert {s.request.id for s in LevelTurns(ranking, 3)(running, 0.0, never)} == {"r3", "r1", "r9"}
    assert LevelTurns(ranking, 9)(running, 0.0, never) == running


def test_a_long_prompt_does_not_stall_those_above_it() -> None:
    """It joins a low level at once and is computed when nobody above it decodes, or when it has waited too long."""
    ranking = SkipJoin(quantum=2, prompt_rows=10, patience=5.0)
    turns = LevelTurns(ranking, 8)
    fresh, worn = decoding("fresh", 1, slot=0), decoding("worn", 30, slot=1)
    long, short = waiting("long", 100), waiting("short", 5)
    for slot, state in enumerate((long, short), start=2):
        state.slot = slot
    fresh.last_token_at = worn.last_token_at = 1.0

    def who(*states, now: float = 1.0) -> list[str]:
        ordered = sorted(states, key=lambda s: ranking.rank(s, now))
        return [s.request.id for s in turns(ordered, now, never)]

    assert who(fresh, worn, long) == ["fresh", "worn"]
    assert who(fresh, worn, short, long) == ["short"]
    assert who(worn, long) == ["long"]
    assert who(fresh, worn, long, now=5.5) == ["long"]


def test_short_answers_overtake_long_ones() -> None:
    """One row a step: a request that comes when another has sunk runs to its end at once, while the other keeps its pages."""
    made = scheduler("fastserve", slots=2, overrides=Overrides(budget=1))
    made.admit([request("long", 4, output=60)], 0.0)
    for now in range(20):
        step(made, now / 100)
    held = list(made.state(0).pages)
    made.admit([request("short", 4, output=5, stem=1)], 0.0)
    for now in range(5):
        _, progress = step(made, 0.2 + now / 100)
        assert [p.state.request.id for p in progress] == ["short"]
    assert progress[0].state.finish is not None
    assert made.state(0).pages[: len(held)] == held and made.state(0).preemptions == 0
    plan, _ = step(made, 0.3)
    assert names(made, plan.decoding) == ["long"]


def test_those_who_starve_are_served() -> None:
    """Newcomers of three iterations come every third step of 0.1 s; whoever is below them gets a token when its patience ends."""
    made = scheduler("fastserve", slots=4, overrides=Overrides(budget=1))
    made.admit([request("long", 4, output=60)], 0.0)
    for now in range(20):
        step(made, now / 100)
    gained = []
    for number in range(200):
        now = 1.0 + number / 10
        if number % 3 == 0:
            made.admit([request(f"s{number}", 4, output=3, stem=number, arrived=now)], 0.0)
        _, progress = step(made, now)
        gained += [now for p in progress if p.state.request.id == "long"]
    assert 5 <= len(gained) <= 10, "20 s are ten times a patience of 2 s"
