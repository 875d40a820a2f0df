"""The scheduling of `adaserve+`: slack, lost requests, and drafts that do not pay."""

from dataclasses import fields, replace
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.errors import InvalidConfig
from adaserve.executor.acceptance import Recording
from adaserve.executor.shipped import profile_named, recording_named
from adaserve.latency import LatencyModel
from adaserve.metrics import TTFT_LIMIT_PER_BASELINE, summarize
from adaserve.padding import Unpadded
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import make_policy
from adaserve.policy.plus.assembly import make_plus
from adaserve.policy.plus.parts import PlusConstants, PlusParts
from adaserve.policy.plus.scheduling import PlusScheduling
from adaserve.policy.plus.slack import bearable, best_chunk, first_token_due, is_lost, paying_rows, strained, thrifty, waited
from adaserve.policy.policy import Demand, Scene
from adaserve.profile import Profile
from adaserve.request import FinishReason, Request, RequestState, SamplingParams, Targets
from adaserve.simulate import Machine, simulate
from adaserve.step import StepShape
from tests.recordings import random_recording
from tests.scheduling.steps import decoding, outcome, request, scheduler, waiting

PROFILE = Profile("stairs", {1: 10.0, 32: 11.0, 64: 16.0, 256: 40.0}, 0.01, {1: 1.0, 64: 1.2}, 0.0, 0.2, 0.0, 10.0)
PAPER = Constants(verify_rows=64, draft_rows=64, prompt_rows=32)


def requests(count: int, every: float, tpot: float | None, prompt: int = 20, output: int = 60) -> list[tuple[float, Request]]:
    sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
    return [
        (i * every, Request(f"{i}", tuple(range(1000 * i, 1000 * i + prompt)), sampling, Targets(tpot=tpot), seed=i, arrived=0.0))
        for i in range(count)
    ]


def refused_everywhere() -> Recording:
    """A draft that is sure of itself and never right."""
    good = random_recording(np.random.default_rng(0))
    return replace(good, rank=np.full_like(good.rank, good.width))


@pytest.mark.parametrize("rows", [1, 20, 32, 200, 300])
def test_added_rows_cost_what_prediction_says(rows: int) -> None:
    latency = LatencyModel(PROFILE)
    for added, seconds in enumerate(latency.prices(rows, 90, 2.0)):
        expected = latency.predict(StepShape(rows + added, 0)) - latency.predict(StepShape(rows, 0))
        assert 2.0 * seconds == pytest.approx(expected, abs=1e-12)


def test_who_is_ahead_can_bear_a_step_until_it_is_late() -> None:
    """Three tokens at 10 ms, 5 ms gone, two to come of the step: 40 - 5 ms."""
    assert bearable(decoding("a", produced=3, tpot=0.010), 0.005, 2.0, 1.0) == pytest.approx(0.035)
    assert bearable(decoding("b"), 1.0, 1.0, 1.0) is None


@given(st.integers(1, 7), st.floats(0.0, 0.2), st.floats(1.0, 4.0))
def test_who_is_behind_bears_steps_that_still_bring_it_to_its_target(produced: int, behind: float, gain: float) -> None:
    state = decoding("a", produced=produced, tpot=0.010)
    now = 0.010 * (produced - 1) + behind
    seconds = bearable(state, now, gain, 1.0)
    assert seconds is not None
    assert now + state.remaining / min(gain, state.remaining) * seconds == pytest.approx(
        0.010 * (state.produced - 1 + state.remaining)
    )


@given(
    st.lists(st.floats(0.0, 1.0), max_size=30),
    st.lists(st.tuples(st.floats(-5.0, 20.0), st.floats(0.0, 1.0)), max_size=8),
    st.floats(0.0, 0.5),
)
def test_a_chunk_brings_most_in_time_of_all_sizes(steps: list[float], strained: list[tuple[float, float]], worth: float) -> None:
    costs = np.array([0.0, *accumulate(steps)])

    def surplus(rows: int) -> float:
        return worth * rows - sum(share for most, share in strained if max(most, 0.0) < costs[rows])

    found = best_chunk(costs, strained, worth)
    assert all(surplus(found) >= surplus(rows) - 1e-9 for rows in range(len(costs)))
    calm = best_chunk(costs, strained, 0.0)  # no first token presses: as much as nobody feels
    assert all(share < 1e-9 or max(most, 0.0) >= costs[calm] for most, share in strained)


@given(
    st.integers(1, 60), st.floats(0.0, 1.0), st.floats(1e-4, 1e-2), st.integers(0, 200), st.integers(0, 200), st.floats(0.0, 4.0)
)
def test_no_number_of_prompt_rows_pays_better(rows: int, worth: float, unit: float, enough: int, more: int, saved: float) -> None:
    latency = LatencyModel(replace(PROFILE, prompt_saves_ms_by_rows={1: 0.0, 64: saved}))
    surplus = [worth * k - price for k, price in enumerate(latency.added_by_prompts(rows, enough + more, unit).tolist())]
    assert paying_rows(latency, rows, worth, unit, enough, enough + more) == min(enough, surplus.index(max(surplus)))


def test_slack_is_of_those_who_have_a_target_and_never_more_than_their_whole_way() -> None:
    """What is borne less the step itself; a step may be all that is left of a request's way, and is never more."""
    near, far, free = decoding("near", produced=7, tpot=0.010), decoding("far", produced=3, tpot=0.010), decoding("free")
    first, second = strained([near, free, far], 0.005, 0.002, 2.0, 1.0)
    assert first == (bearable(near, 0.005, 2.0, 1.0) - 0.002, 1.0)
    assert second == (bearable(far, 0.005, 2.0, 1.0) - 0.002, 2.0 / far.remaining)


def test_lost_is_who_cannot_make_it_at_the_best_pace() -> None:
    state = decoding("a", produced=3, tpot=0.010)  # five of eight tokens still to come; the seven after the first have 70 ms
    assert not is_lost(state, 0.044, 0.005)
    assert is_lost(state, 0.046, 0.005)
    assert not is_lost(state, 9.9, None)
    assert not is_lost(decoding("b", produced=3), 9.9, 0.005)


def test_first_tokens_press_more_and_more_until_they_are_late() -> None:
    baseline = 0.003  # nobody waits more than a second
    early, late = waiting("a", prompt=30, arrived=0.0), waiting("b", prompt=50, arrived=-5.0)
    assert first_token_due(early, baseline) == pytest.approx(1.0)
    assert [waited([early, late], now, baseline) for now in (0.0, 0.1, 0.9)] == pytest.approx([0.0, 0.1, 0.9])
    assert waited([late], 0.1, baseline) == waited([], 0.1, baseline) == 0.0


def test_prompts_that_press_are_read_at_a_running_requests_expense() -> None:
    """Two tight requests run: prompts take what these can bear, and when the time of first tokens is nearly up, more."""
    rows = {}
    latency = LatencyModel(PROFILE)
    limit = TTFT_LIMIT_PER_BASELINE * latency.baseline
    for used in (0.0, 0.9):
        now = 0.035
        tight = [decoding(f"{i}", produced=4, tpot=0.0092) for i in range(2)]
        backlog = [waiting("b", prompt=10, arrived=now - used * limit) for _ in range(12)]
        scene = Scene(now, tight, backlog, 0, latency, Unpadded(), crowded=False)
        rows[used] = make_plus("p", PAPER, PlusParts(), PlusConstants(prompt_stretch=9.0)).scheduling.share(Demand(2, 120, scene))
    assert not rows[0.9].spared
    assert rows[0.9].prompt_rows > 2 * rows[0.0].prompt_rows > 0


def test_drafts_that_are_never_accepted_are_given_up() -> None:
    """Throughput at least 95% of plain decoding's (design: robustness), start included."""
    timed = requests(16, 0.0, None, output=500)
    found, plain = (
        summarize(
            name,
            (played := simulate(timed, make_policy(name, PAPER), Machine(PROFILE), refused_everywhere())).results,
            (),
            played.totals,
        )
        for name in ("adaserve+", "continuous")
    )
    assert found.throughput_tokens_per_s > 0.95 * plain.throughput_tokens_per_s


@pytest.mark.parametrize("left_out", ["", *[item.name for item in fields(PlusParts) if item.default]])
def test_every_part_can_be_left_out(left_out: str) -> None:
    """All requests end with all their tokens, whatever is left out; the same arguments, the same run."""
    parts = PlusParts().without(left_out) if left_out else PlusParts()
    timed = requests(12, 0.02, 0.012)
    runs = [
        simulate(
            timed, make_plus("p", PAPER, parts, PlusConstants()), Machine(PROFILE), random_recording(np.random.default_rng(0))
        )
        for _ in range(2)
    ]
    assert all(r.completed and r.output_tokens == 60 for r in runs[0].results) and len(runs[0].results) == 12
    assert runs[0].results == runs[1].results


def test_a_part_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="calibrated, priced, attaining, slack_chunks"):
        PlusParts().without("speed")


def test_lost_is_judged_by_what_drafting_can_still_bring() -> None:
    """A step without drafts takes a token past the target, one with an accepted draft does not: such a request is drafted for."""
    parts = PlusParts()
    scheduling = make_plus("p", PAPER, parts, PlusConstants()).scheduling
    behind = decoding("a", produced=3, tpot=0.010)  # five tokens to come in what is left of 70 ms
    lost = {}
    for now in (0.025, 0.069):
        scene = Scene(now, [behind], [], 0, LatencyModel(PROFILE), Unpadded(), crowded=False)
        lost[now] = scheduling.share(Demand(1, 0, scene)).lost
    assert 0.025 + 5 * LatencyModel(PROFILE).predict(StepShape(1, 0)) > 0.070  # plain decoding would be late
    assert lost[0.025] == frozenset() and lost[0.069] == {"a"}


@pytest.mark.parametrize("others", [0, 1])
def test_who_is_lost_is_drafted_for_where_that_takes_time_from_nobody(others: int) -> None:
    late = [decoding(name, produced=3, tpot=0.010) for name in "ab"]
    for decodes, waits in ((others, 0), (0, others)):
        running = [*late, *[decoding("c") for _ in range(decodes)]]
        scene = Scene(0.069, running, [], waits, LatencyModel(PROFILE), Unpadded(), crowded=False)
        share = make_plus("p", PAPER, PlusParts(), PlusConstants()).scheduling.share(Demand(len(running), 0, scene))
        assert share.lost == {"a", "b"} and share.spared == (share.lost if others else frozenset())
        assert decodes or (share.depth > 0) == (not others)


@pytest.mark.parametrize("decodes", [0, 1])
@pytest.mark.parametrize("reads", [0, 1])
def test_who_is_lost_is_drafted_for_where_others_wait_for_its_slot(decodes: int, reads: int) -> None:
    running = [*[decoding(name, produced=3, tpot=0.010) for name in "ab"], *[decoding("c", tpot=0.1) for _ in range(decodes)]]
    backlog = [waiting("d", prompt=30) for _ in range(reads)]
    scene = Scene(0.069, running, backlog, 5, LatencyModel(PROFILE), Unpadded(), crowded=True)
    share = make_plus("p", PAPER, PlusParts(), PlusConstants()).scheduling.share(Demand(len(running), 30 * reads, scene))
    assert share.lost == {"a", "b"} and not share.spared and share.depth > 0


@pytest.mark.parametrize("output", [7, 7000])
def test_the_draft_reads_for_who_is_lost_where_that_pays(output: int) -> None:
    """However crowded it is: for a few tokens more nobody reads a long prompt, and for the lost no target is at stake."""
    dear = LatencyModel(replace(PROFILE, draft_step_ms_by_rows={1: 1.0, 64: 30.0}))
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
    scene = Scene(0.069, [*ready, *behind], [], 5, LatencyModel(PROFILE), Unpadded(), crowded=True)
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


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=60), st.integers(0, 60))
def test_a_thrifty_chunk_takes_half_at_least_and_no_dear_rows(added: list[float], wished: int) -> None:
    costs = np.array([0.0, *accumulate(added)])
    wished = min(wished, len(added))
    found = thrifty(costs, wished, 0.5, 1.1)
    assert wished / 2 <= found <= wished
    if found:
        assert all(costs[found] / found <= 1.1 * costs[k] / k * (1 + 1e-9) for k in range(-(-wished // 2), wished + 1))


def test_a_thrifty_chunk_stops_at_a_tile() -> None:
    """The row after the thirteenth costs as much as four others."""
    costs = np.array([0.35 * rows + (1.4 if rows > 13 else 0.0) for rows in range(30)])
    assert [thrifty(costs, wished, 0.5, 1.1) for wished in (0, 1, 12, 13, 16, 20, 29)] == [0, 1, 12, 13, 13, 13, 29]


def test_the_draft_reads_no_prompt_that_it_cannot_pay_for() -> None:
    """A short answer after a long prompt is not worth reading along for; one that cannot attain without drafts is."""
    dear = replace(PROFILE, draft_step_ms_by_rows={1: 1.0, 64: 30.0})
    spared = {}
    for name, tpot in (("calm", 0.1), ("urgent", 0.010)):
        scheduling = make_plus("p", PAPER, PlusParts(), PlusConstants()).scheduling
        late, short = decoding("late", tpot=0.1), waiting(name, prompt=400, tpot=tpot)
        late.draft_computed = len(late.tokens) - 1
        scene = Scene(0.0, [late], [short], 0, LatencyModel(dear), Unpadded(), crowded=False)
        share = scheduling.share(Demand(1, 400, scene))
        assert share.depth > 0, "for the one that decodes"
        spared[name] = share.spared
    assert spared == {"calm": {"calm"}, "urgent": frozenset()}


def test_a_draft_catches_up_as_far_as_others_can_bear() -> None:
    """Ten requests are 400 tokens behind: much is read at once where nobody minds, else what another can bear."""
    latency = LatencyModel(replace(PROFILE, draft_step_ms_by_rows={1: 1.0, 101: 2.0}))  # 10 us a row
    behind = [running(f"{i}", None) for i in range(10)]
    rows = {}
    for tpot in (None, 0.010, 0.007):
        ready = running("ready", tpot)
        ready.draft_computed = len(ready.tokens) - 1
        share = make_plus("p", PAPER, PlusParts(), PlusConstants()).scheduling.share(
            Demand(11, 0, Scene(0.0, [ready, *behind], [], 0, latency, Unpadded(), crowded=False))
        )
        assert share.depth > 0
        rows[tpot] = share.catch_up
    assert PlusConstants().read_most >= rows[None] > rows[0.010] > rows[0.007] >= PlusConstants().read_least


def running(name: str, tpot: float | None) -> RequestState:
    """A request with a long answer ahead of it, whose prompt the target has read, and the draft has not."""
    state = waiting(name, prompt=400, produced=1, tpot=tpot, output=2000)
    state.slot, state.computed, state.decoding_since = 0, len(state.tokens) - 1, 0.0
    return state


def test_many_at_once_without_a_target_are_drafted_for() -> None:
    """Nobody has a target to keep: prompts come in large pieces, and a draft that was spared them reads them after all."""
    machine, recording = Machine(profile_named("h200-32b-measured")), recording_named("smollm2-demo-t0", 0)
    classes = ("coding", "chat", "summarization")
    timed = [
        (at, replace(r, slo_class=classes[i % 3])) for i, (at, r) in enumerate(requests(64, 0.0, None, prompt=256, output=192))
    ]
    took = {name: simulate(timed, make_policy(name, PAPER), machine, recording).seconds for name in ("adaserve+", "continuous")}
    assert took["adaserve+"] < 0.95 * took["continuous"]


def test_a_crowd_that_has_gone_sets_no_price() -> None:
    """Tokens were cheap while a crowd was served. Who is alone now is drafted for, unless somebody waits for that time."""
    busy = scheduler("continuous", slots=64, pages=5000, constants=PAPER)
    busy.admit([request(f"{i}", 8, output=30) for i in range(64)], 0.0)
    plan = busy.plan(0.0)
    while plan is not None and len(plan.decoding) < 64:
        busy.record(outcome(plan), 0.0)
        plan = busy.plan(0.0)
    assert plan is not None
    depths = {}
    for others in (0, 5):
        scheduling = make_plus("p", PAPER, PlusParts(), PlusConstants()).scheduling
        assert isinstance(scheduling, PlusScheduling)
        for _ in range(300):
            scheduling.learn(outcome(plan))  # 64 tokens a millisecond
        scene = Scene(0.0, [decoding("a")], [], others, LatencyModel(PROFILE), Unpadded(), crowded=False)
        depths[others] = scheduling.share(Demand(1, 0, scene)).depth
    assert depths[0] > 0 and depths[5] == 0


def test_without_trees_drafts_are_chains() -> None:
    scene = Scene(0.0, [decoding("a", tpot=0.010)], [], 0, LatencyModel(PROFILE), Unpadded(), crowded=False)
    widths = [
        make_plus("p", PAPER, parts, PlusConstants()).scheduling.share(Demand(1, 0, scene)).width
        for parts in (PlusParts(), PlusParts().without("trees"))
    ]
    assert widths == [3, 1]


def test_hopeless_is_who_cannot_make_it_even_if_favoured() -> None:
    """Alone a target below what drafting can bring; beside others one that it could have met alone; a prompt too long to read."""
    scheduling = make_plus("p", PAPER, PlusParts().also("refusing"), PlusConstants()).scheduling
    assert isinstance(scheduling, PlusScheduling)
    latency = LatencyModel(PROFILE)  # 10 ms a step alone, 40 ms with 256 rows

    def hopeless(others: int, prompt: int = 8, tpot: float | None = None, ttft: float | None = None) -> bool:
        scene = Scene(0.0, [decoding(f"{i}") for i in range(others)], [], 0, latency, Unpadded(), crowded=False)
        return scheduling.hopeless(request("a", prompt, tpot=tpot, ttft=ttft), scene)

    assert hopeless(0, tpot=0.001) and not hopeless(0, tpot=0.012)
    assert hopeless(200, tpot=0.012) and not hopeless(200, tpot=0.1)
    assert hopeless(0, prompt=256, ttft=0.039) and not hopeless(0, prompt=256, ttft=0.041)
    assert not hopeless(200)


def test_refusing_is_off_unless_asked_for_and_refuses_the_hopeless_alone() -> None:
    """Past capacity: who is refused has missed and gets no token, and those who stay attain who did not before."""
    tpots = (0.014, 0.006)  # seconds, in turns
    timed = [(at, replace(r, targets=Targets(tpots[i % 2]))) for i, (at, r) in enumerate(requests(64, 0.0, None))]
    good = random_recording(np.random.default_rng(0))
    found = {}
    for name in ("adaserve+", "adaserve+:with-refusing"):
        results = simulate(timed, make_policy(name, PAPER), Machine(PROFILE), good).results
        refused = [r for r in results if r.finish is FinishReason.REFUSED]
        assert all(r.output_tokens == 0 and r.attained is False and r.targets.tpot == 0.006 for r in refused)
        assert summarize(name, results).refused == len(refused) and len(results) == 64
        found[name] = len(refused), sum(r.attained is True for r in results)
    assert found["adaserve+"][0] == 0 < found["adaserve+:with-refusing"][0] < 64
    assert found["adaserve+:with-refusing"][1] > 2 * found["adaserve+"][1]


def test_prompts_do_not_trickle_where_nobody_has_slack() -> None:
    """One request that can just make it leaves no time for prompts: half of the fixed split's rows are read all the same."""
    late, others = decoding("a", produced=7, tpot=0.010), [decoding(f"{i}") for i in range(50)]
    scene = Scene(0.060, [late, *others], [waiting("b", prompt=200)], 0, LatencyModel(PROFILE), Unpadded(), crowded=False)
    rows = []
    for constants in (PlusConstants(), PlusConstants(prompt_least=0.0)):
        share = make_plus("p", PAPER, PlusParts(), constants).scheduling.share(Demand(51, 200, scene))
        rows.append(share.prompt_rows)
    assert rows[0] == PAPER.prompt_rows // 2 > 2 * rows[1]
