"""The scheduling of `adaserve+`: what is drafted and read, and drafts that do not pay."""

from dataclasses import fields, replace

import numpy as np
import pytest

from adaserve.errors import InvalidConfig
from adaserve.executor.acceptance import Recording
from adaserve.executor.shipped import profile_named, recording_named
from adaserve.latency import LatencyModel
from adaserve.metrics import TTFT_LIMIT_PER_BASELINE, summarize
from adaserve.padding import Unpadded
from adaserve.policy.library import make_policy
from adaserve.policy.plus.assembly import make_plus
from adaserve.policy.plus.parts import PlusConstants, PlusParts
from adaserve.policy.plus.scheduling import PlusScheduling
from adaserve.policy.policy import Demand, Scene
from adaserve.request import FinishReason, Request, RequestState, SamplingParams, Targets
from adaserve.simulate import Machine, simulate
from tests.profiles import STEEP
from tests.recordings import random_recording
from tests.scheduling.steps import PAPER, decoding, outcome, request, scheduler, waiting


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


def test_prompts_that_press_are_read_at_a_running_requests_expense() -> None:
    """Two tight requests run: prompts take what these can bear, and when the time of first tokens is nearly up, more."""
    rows = {}
    latency = LatencyModel(STEEP)
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
            (played := simulate(timed, make_policy(name, PAPER), Machine(STEEP), refused_everywhere())).results,
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
        simulate(timed, make_plus("p", PAPER, parts, PlusConstants()), Machine(STEEP), random_recording(np.random.default_rng(0)))
        for _ in range(2)
    ]
    assert all(r.completed and r.output_tokens == 60 for r in runs[0].results) and len(runs[0].results) == 12
    assert runs[0].results == runs[1].results


def test_a_part_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="calibrated, priced, attaining, slack_chunks"):
        PlusParts().without("speed")


def test_the_draft_reads_no_prompt_that_it_cannot_pay_for() -> None:
    """A short answer after a long prompt is not worth reading along for; one that cannot attain without drafts is."""
    dear = replace(STEEP, draft_step_ms_by_rows={1: 1.0, 64: 30.0})
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
    latency = LatencyModel(replace(STEEP, draft_step_ms_by_rows={1: 1.0, 101: 2.0}))  # 10 us a row
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
        scene = Scene(0.0, [decoding("a")], [], others, LatencyModel(STEEP), Unpadded(), crowded=False)
        depths[others] = scheduling.share(Demand(1, 0, scene)).depth
    assert depths[0] > 0 and depths[5] == 0


def test_without_trees_drafts_are_chains() -> None:
    scene = Scene(0.0, [decoding("a", tpot=0.010)], [], 0, LatencyModel(STEEP), Unpadded(), crowded=False)
    widths = [
        make_plus("p", PAPER, parts, PlusConstants()).scheduling.share(Demand(1, 0, scene)).width
        for parts in (PlusParts(), PlusParts().without("trees"))
    ]
    assert widths == [3, 1]


def test_hopeless_is_who_cannot_make_it_even_if_favoured() -> None:
    """Alone a target below what drafting can bring; beside others one that it could have met alone; a prompt too long to read."""
    scheduling = make_plus("p", PAPER, PlusParts().also("refusing"), PlusConstants()).scheduling
    assert isinstance(scheduling, PlusScheduling)
    latency = LatencyModel(STEEP)  # 10 ms a step alone, 40 ms with 256 rows

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
        results = simulate(timed, make_policy(name, PAPER), Machine(STEEP), good).results
        refused = [r for r in results if r.finish is FinishReason.REFUSED]
        assert all(r.output_tokens == 0 and r.attained is False and r.targets.tpot == 0.006 for r in refused)
        assert summarize(name, results).refused == len(refused) and len(results) == 64
        found[name] = len(refused), sum(r.attained is True for r in results)
    assert found["adaserve+"][0] == 0 < found["adaserve+:with-refusing"][0] < 64
    assert found["adaserve+:with-refusing"][1] > 2 * found["adaserve+"][1]


def test_prompts_do_not_trickle_where_nobody_has_slack() -> None:
    """One request that can just make it leaves no time for prompts: half of the fixed split's rows are read all the same."""
    late, others = decoding("a", produced=7, tpot=0.010), [decoding(f"{i}") for i in range(50)]
    scene = Scene(0.060, [late, *others], [waiting("b", prompt=200)], 0, LatencyModel(STEEP), Unpadded(), crowded=False)
    rows = []
    for constants in (PlusConstants(), PlusConstants(prompt_least=0.0)):
        share = make_plus("p", PAPER, PlusParts(), constants).scheduling.share(Demand(51, 200, scene))
        rows.append(share.prompt_rows)
    assert rows[0] == PAPER.prompt_rows // 2 > 2 * rows[1]
