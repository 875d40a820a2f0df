"""The scheduling of `adaserve+`: slack, lost requests, and drafts that do not pay."""

from dataclasses import fields, replace

import numpy as np
import pytest

from adaserve.errors import InvalidConfig
from adaserve.executor.acceptance import Recording
from adaserve.latency import LatencyModel, Profile
from adaserve.metrics import summarize
from adaserve.padding import Unpadded
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import make_policy
from adaserve.policy.plus.assembly import make_plus
from adaserve.policy.plus.parts import PlusConstants, PlusParts
from adaserve.policy.plus.scheduling import PlusScheduling
from adaserve.policy.plus.slack import allowed, first_token_due, is_lost, rows_due
from adaserve.policy.policy import Demand, Scene
from adaserve.request import FinishReason, Request, SamplingParams, Targets
from adaserve.simulate import Machine, simulate
from adaserve.step import StepShape
from tests.recordings import random_recording
from tests.scheduling.steps import decoding, request, waiting

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
    for added, seconds in enumerate(latency.added(rows, 90, 2.0)):
        expected = latency.predict(StepShape(rows + added, 0)) - latency.predict(StepShape(rows, 0))
        assert 2.0 * seconds == pytest.approx(expected, abs=1e-12)


def test_the_time_allowed_is_the_time_until_late() -> None:
    """20 tokens at 10 ms, 150 ms gone, two to come of the step: 220 - 150 ms. Time that can be won back lends a quarter."""
    state = decoding("a", produced=21, tpot=0.010)
    assert allowed(state, 0.150, 2.0, 1.0, usual=0.010) == pytest.approx(0.070)
    more = allowed(state, 0.150, 2.0, 1.0, usual=0.006)
    assert more == pytest.approx(0.070 + 0.25 * state.remaining * 0.004) if state.remaining > 0 else True
    assert allowed(decoding("b"), 1.0, 1.0, 1.0, 0.01) is None


def test_lost_is_who_cannot_make_it_at_the_best_pace() -> None:
    state = decoding("a", produced=3, tpot=0.010)  # five of eight tokens still to come; the seven after the first have 70 ms
    assert not is_lost(state, 0.044, 0.005)
    assert is_lost(state, 0.046, 0.005)
    assert not is_lost(state, 9.9, None)
    assert not is_lost(decoding("b", produced=3), 9.9, 0.005)


def test_first_tokens_press_before_they_are_late() -> None:
    baseline = 0.003  # nobody waits more than a second
    early, late = waiting("a", prompt=30, arrived=0.0), waiting("b", prompt=50, arrived=-5.0)
    assert first_token_due(early, baseline) == pytest.approx(1.0)
    assert rows_due([early], 0.1, baseline, 0.5) == pytest.approx(30 / 0.4)
    assert rows_due([late], 0.1, baseline, 0.5) == 0.0
    assert rows_due([early], 0.9, baseline, 0.5) > rows_due([early], 0.1, baseline, 0.5)


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
    spared = {}
    for now in (0.025, 0.069):
        scene = Scene(now, [behind], [], 0, LatencyModel(PROFILE), Unpadded())
        spared[now] = scheduling.share(Demand(1, 0, scene)).spared
    assert 0.025 + 5 * LatencyModel(PROFILE).predict(StepShape(1, 0)) > 0.070  # plain decoding would be late
    assert spared[0.025] == frozenset() and spared[0.069] == {"a"}


def test_without_trees_drafts_are_chains() -> None:
    scene = Scene(0.0, [decoding("a", tpot=0.010)], [], 0, LatencyModel(PROFILE), Unpadded())
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
        scene = Scene(0.0, [decoding(f"{i}") for i in range(others)], [], 0, latency, Unpadded())
        return scheduling.hopeless(request("a", prompt, tpot=tpot, ttft=ttft), scene)

    assert hopeless(0, tpot=0.001) and not hopeless(0, tpot=0.012)
    assert hopeless(200, tpot=0.012) and not hopeless(200, tpot=0.1)
    assert hopeless(0, prompt=256, ttft=0.039) and not hopeless(0, prompt=256, ttft=0.041)
    assert not hopeless(200)


def test_refusing_is_off_unless_asked_for_and_refuses_the_hopeless_alone() -> None:
    """Past capacity: who is refused has missed and gets no token, and those who stay attain who did not before."""
    tpots = (0.014, 0.006)  # seconds, in turns
    timed = [(at, replace(r, targets=Targets(tpots[i % 2]))) for i, (at, r) in enumerate(requests(64, 0.001, None))]
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
    scene = Scene(0.060, [late, *others], [waiting("b", prompt=200)], 0, LatencyModel(PROFILE), Unpadded())
    rows = []
    for constants in (PlusConstants(), PlusConstants(prompt_least=0.0)):
        share = make_plus("p", PAPER, PlusParts(), constants).scheduling.share(Demand(51, 200, scene))
        assert not share.spared
        rows.append(share.prompt_rows)
    assert rows[0] == PAPER.prompt_rows // 2 > 2 * rows[1]
