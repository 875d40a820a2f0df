"""Attainment, goodput and acceptance: the rules of comparison as properties of one pair of folds."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.metrics import RequestResult, StepTotals, percentile_ms, summarize
from adaserve.request import FinishReason, Request, RequestState, SamplingParams, Targets
from adaserve.step import Chunk, Drafted, Limits, PhaseTimes, StepOutcome, StepPlan, StepShape

BASELINE = 0.03
seconds = st.floats(0, 100)
targets = st.one_of(st.none(), st.floats(1e-3, 20))


@st.composite
def results(draw: st.DrawFn) -> RequestResult:
    """A request that ended in any way, with times that fit together."""
    output = draw(st.integers(0, 300))
    arrived = draw(seconds)
    first = arrived + draw(seconds) if output else None
    last = None if first is None else first + (draw(seconds) if output > 1 else 0.0)
    return RequestResult(
        id=str(draw(st.integers(0, 10**6))),
        slo_class=draw(st.sampled_from(["coding", "chat", None])),
        targets=Targets(draw(targets), draw(targets)),
        arrived=arrived,
        first_token_at=first,
        last_token_at=last,
        ended=arrived if last is None else last,
        prompt_tokens=draw(st.integers(1, 1000)),
        output_tokens=output,
        finish=draw(st.sampled_from([*FinishReason, None])),
        baseline=draw(st.sampled_from([0.001, BASELINE])),
    )


def refuse(result: RequestResult) -> RequestResult:
    return replace(result, first_token_at=None, last_token_at=None, output_tokens=0, finish=None)


def done(tpot: float, ttft: float = 1.0, output: int = 101, **changes: Any) -> RequestResult:
    """A completed request with these figures and a TPOT target of 50 ms."""
    base = RequestResult(
        id="r",
        slo_class="chat",
        targets=Targets(tpot=0.05),
        arrived=10.0,
        first_token_at=10.0 + ttft,
        last_token_at=10.0 + ttft + tpot * (output - 1),
        ended=10.0 + ttft + tpot * (output - 1),
        prompt_tokens=5,
        output_tokens=output,
        finish=FinishReason.LENGTH,
        baseline=BASELINE,
    )
    return replace(base, **changes)


# One request.


def test_tpot_leaves_the_first_token_out() -> None:
    result = done(0.04)
    assert result.tpot == pytest.approx(0.04)
    assert result.ttft == pytest.approx(1.0)
    assert result.latency == pytest.approx(5.0)
    assert (result.attained, result.tpot_attained, result.ttft_attained) == (True, True, None)
    assert done(0.06).attained is False


def test_one_token_has_no_gap_and_none_has_no_time() -> None:
    assert done(0.0, output=1).tpot == 0.0
    assert done(0.0, output=1).attained is True
    nothing = refuse(done(0.04))
    assert (nothing.tpot, nothing.ttft, nothing.attained) == (None, None, False)


@pytest.mark.parametrize("finish", [FinishReason.CANCELLED, FinishReason.ERROR, FinishReason.REFUSED, None])
def test_what_did_not_complete_has_missed_its_target(finish: FinishReason | None) -> None:
    result = done(0.01, finish=finish)
    assert (result.attained, result.tpot_attained) == (False, False)
    assert replace(result, targets=Targets()).attained is None


def test_waiting_beyond_reason_misses_the_slo_but_not_the_papers_measure() -> None:
    assert done(0.04, ttft=9.99).attained is True
    late = done(0.04, ttft=10.01)
    assert (late.attained, late.tpot_attained) == (False, True)
    assert replace(late, baseline=2 * BASELINE).attained is True
    assert replace(late, targets=Targets()).attained is None


def test_every_stated_target_counts() -> None:
    assert done(0.04, targets=Targets(tpot=0.05, ttft=0.5)).attained is False
    assert done(0.04, targets=Targets(tpot=0.05, ttft=1.5)).attained is True
    assert done(0.06, targets=Targets(tpot=0.05, ttft=1.5)).attained is False
    assert done(9.0, targets=Targets(ttft=1.5)).attained is True


@given(results(), st.floats(1, 10))
def test_a_laxer_target_is_never_harder_to_meet(result: RequestResult, scale: float) -> None:
    lax = Targets(*(None if t is None else t * scale for t in (result.targets.tpot, result.targets.ttft)))
    assert (replace(result, targets=lax).attained or False) >= (result.attained or False)


@given(results())
def test_attaining_implies_completing_and_each_part(result: RequestResult) -> None:
    assert (result.attained is None) == (result.targets == Targets())
    if result.attained:
        assert result.completed
        assert result.tpot_attained is not False
        assert result.ttft_attained is not False


def test_a_result_tells_what_the_engine_knows() -> None:
    request = Request("a", (1, 2, 3), SamplingParams(max_tokens=4), Targets(0.05), seed=1, arrived=2.0, slo_class="coding")
    state = RequestState(request, [1, 2, 3, 7, 8, 9, 9])
    state.decoding_since, state.last_token_at, state.longest_gap = 3.0, 3.12, 0.08
    state.drafted, state.accepted, state.steps, state.preemptions, state.cached_tokens = 6, 1, 2, 1, 2
    state.finish = FinishReason.LENGTH
    result = RequestResult.from_state(state, 3.13, BASELINE)
    assert result.tpot == pytest.approx(0.04)
    assert (result.prompt_tokens, result.output_tokens, result.slo_class) == (3, 4, "coding")
    assert (result.drafted, result.accepted, result.steps, result.preemptions, result.cached_tokens) == (6, 1, 2, 1, 2)
    assert result.longest_gap == 0.08
    assert result.attained is True

    refused = RequestResult.refused(request, 2.5, BASELINE)
    assert (refused.attained, refused.completed, refused.output_tokens, refused.ended) == (False, False, 0, 2.5)


# Many requests.


@given(st.lists(results(), max_size=20), st.lists(results().map(refuse), max_size=5), st.randoms())
def test_a_report_does_not_depend_on_the_order(taken: list[RequestResult], refused: list[RequestResult], shuffle: Any) -> None:
    report = summarize("p", taken, refused)
    mixed = list(taken)
    shuffle.shuffle(mixed)
    assert summarize("p", mixed, refused) == report


@given(st.lists(results(), max_size=20), st.lists(results().map(refuse), max_size=5))
def test_reports_keep_their_bounds(taken: list[RequestResult], refused: list[RequestResult]) -> None:
    report = summarize("p", taken, refused)
    assert 0 <= report.goodput_tokens_per_s <= report.throughput_tokens_per_s
    assert report.requests == len(taken) + len(refused) == sum(c.requests for c in report.per_class.values())
    assert report.completed <= len(taken)
    assert report.refused == len(refused) + sum(r.finish is FinishReason.REFUSED for r in taken)
    for value in (report.slo_attainment, report.tpot_attainment, *(c.attainment for c in report.per_class.values())):
        assert value is None or 0 <= value <= 1
    for part in report.per_class.values():
        assert (part.tpot_p50_ms or 0) <= (part.tpot_p99_ms or 0)
    stated = [r for r in (*taken, *refused) if r.targets != Targets()]
    assert (report.slo_attainment is None) == (not stated)


@given(st.lists(results(), min_size=1, max_size=20), results().map(refuse))
def test_refusing_never_helps(taken: list[RequestResult], refused: RequestResult) -> None:
    before, after = summarize("p", taken), summarize("p", taken, [refused])
    if before.slo_attainment is not None and after.slo_attainment is not None:
        assert after.slo_attainment <= before.slo_attainment
    assert after.goodput_tokens_per_s <= before.goodput_tokens_per_s * (1 + 1e-9)


def test_rates_divide_by_first_arrival_to_last_completion() -> None:
    good = done(0.05, output=101)  # arrives at 10, last token at 16
    bad = done(0.10, output=101, arrived=12.0, first_token_at=13.0, last_token_at=23.0)
    free = done(0.10, output=51, targets=Targets(), slo_class=None)
    report = summarize("p", [good, bad, free])
    assert report.goodput_tokens_per_s == pytest.approx(101 / 13)
    assert report.throughput_tokens_per_s == pytest.approx(253 / 13)
    assert report.slo_attainment == 0.5
    assert summarize("p", [good, bad, free], window=26).throughput_tokens_per_s == pytest.approx(253 / 26)
    unfinished = done(0.10, output=201, finish=None)  # its last token is at 31
    assert summarize("p", [good, bad, free, unfinished]).goodput_tokens_per_s == pytest.approx(101 / 13)
    assert summarize("p", [unfinished]).throughput_tokens_per_s == pytest.approx(201 / 21)
    assert set(report.per_class) == {"chat", "default"}
    assert report.per_class["default"].attainment is None
    assert report.per_class["chat"].tpot_p50_ms == pytest.approx(75)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=30), st.floats(0, 100))
def test_percentiles_are_numpys_linear_ones(values: list[float], q: float) -> None:
    assert percentile_ms([None, *values], q) == pytest.approx(float(np.percentile(values, q, method="linear")) * 1e3)
    assert percentile_ms([None], q) is None


def test_a_report_has_exactly_the_keys_of_the_contract() -> None:
    report = summarize("adaserve", [done(0.04)], [refuse(done(0.04))], StepTotals()).to_json()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report) == {
        *("policy", "slo_attainment", "tpot_attainment", "goodput_tokens_per_s", "throughput_tokens_per_s", "requests"),
        *("completed", "per_class", "mean_tokens_per_step", "ttft_p50_ms", "ttft_p99_ms", "refused", "mean_accepted"),
        *("step_share", "step_time_error"),
    }
    assert set(report["per_class"]["chat"]) == {
        *("requests", "attainment", "tpot_p50_ms", "tpot_p99_ms", "ttft_p50_ms", "ttft_p99_ms"),
    }
    assert set(report["step_share"]) == {"speculate", "select", "verify", "commit", "schedule"}


@given(st.lists(results(), max_size=6), st.lists(results().map(refuse), max_size=3))
def test_reports_are_plain_json_whatever_happened(taken: list[RequestResult], refused: list[RequestResult]) -> None:
    json.dumps(summarize("p", taken, refused).to_json(), allow_nan=False)


# Steps.


@st.composite
def outcomes(draw: st.DrawFn) -> StepOutcome:
    """A step of a few requests, each with a chain of draft nodes of which some are accepted, and perhaps a failed one."""
    n = draw(st.integers(0, 4))
    lengths = [draw(st.integers(0, 4)) for _ in range(n)]
    accepted = [draw(st.integers(0, length)) for length in lengths]
    nodes = [(i, depth) for i in range(n) for depth in range(1, lengths[i] + 1)]
    plan = StepPlan(
        released=(),
        placed=(),
        grants=(),
        decoding=tuple(range(n)),
        need=(1.0,) * n,
        room=(4,) * n,
        temperature=(0.0,) * n,
        drafting=tuple(Chunk(i, 5, 1, True) for i in range(n)),
        chunks=(),
        catch_up=(),
        limits=Limits(16, 4, 4),
        depth=4,
        width=1,
        predicted=draw(st.floats(0.001, 1)),
    )
    return StepOutcome(
        plan=plan,
        tokens=tuple((7,) * (a + 1) for a in accepted),
        first_tokens=(),
        logprobs=((),) * n,
        first_logprobs=(),
        drafted=Drafted(
            request=tuple(i for i, _ in nodes),
            depth=tuple(d for _, d in nodes),
            source=(0,) * len(nodes),
            path_prob=tuple(0.5**d for _, d in nodes),
            edge_prob=(0.5,) * len(nodes),
            reached=tuple(d <= accepted[i] + 1 for i, d in nodes),
            accepted=tuple(d <= accepted[i] for i, d in nodes),
        ),
        failed=(),
        shape=StepShape(n + len(nodes), 10 * n),
        times=PhaseTimes(*(draw(st.floats(0, 1)) for _ in range(5))),
    )


def fold(steps: list[StepOutcome]) -> StepTotals:
    totals = StepTotals()
    for step in steps:
        totals.add(step)
    return totals


@given(st.lists(outcomes(), max_size=6), st.lists(outcomes(), max_size=6))
def test_totals_join_in_any_order(first: list[StepOutcome], second: list[StepOutcome]) -> None:
    whole = _flat(fold(first + second))
    for joined in (fold(first) + fold(second), fold(second) + fold(first), fold(second + first)):
        assert _flat(joined) == pytest.approx(whole)


def _flat(totals: StepTotals) -> dict[str, float]:
    """All numbers of the totals by name; counters without their zeros."""
    flat: dict[str, float] = {}
    for name, value in vars(totals).items():
        flat.update({f"{name}.{k}": v for k, v in value.items() if v} if isinstance(value, dict) else {name: value})
    return flat


@given(st.lists(outcomes(), max_size=6))
def test_totals_count_what_happened(steps: list[StepOutcome]) -> None:
    totals = fold(steps)
    assert totals.steps == len(steps)
    assert totals.rows == sum(s.shape.rows for s in steps)
    assert all(totals.accepted[d] <= totals.reached[d] <= totals.drafted[d] for d in range(1, 5))
    assert sum(totals.selected.values()) == sum(totals.drafted.values())
    decodes = sum(len(s.plan.decoding) for s in steps)
    if decodes:
        assert totals.mean_accepted is not None
        assert totals.mean_tokens_per_step == pytest.approx(1 + totals.mean_accepted)  # the target's own token, and the accepted
    else:
        assert totals.mean_tokens_per_step is totals.mean_accepted is None
    total = sum(s.times.total for s in steps)
    assert sum(totals.step_share.values()) == pytest.approx(1 if total else 0)
    errors = [abs(s.plan.predicted / s.times.total - 1) for s in steps if s.times.total]
    if errors:
        assert totals.step_time_error == pytest.approx(math.fsum(errors) / len(errors))
    else:
        assert totals.step_time_error is None


@given(outcomes().filter(lambda s: len(s.drafted.depth) > 0))
def test_nodes_are_counted_by_the_phase_that_chose_them(step: StepOutcome) -> None:
    counts = [step.drafted.request.count(i) for i in range(len(step.plan.decoding))]
    totals = StepTotals()
    totals.add(step, [c // 2 for c in counts])
    assert totals.selected["slo"] == sum(c // 2 for c in counts)
    assert totals.selected["slo"] + totals.selected["throughput"] == sum(counts)


@given(outcomes().filter(lambda s: len(s.plan.decoding) > 1))
def test_failed_requests_count_for_nothing_but_time(step: StepOutcome) -> None:
    totals, first = StepTotals(), step.plan.decoding[0]
    totals.add(replace(step, failed=(first,)))
    assert totals.decodes == len(step.plan.decoding) - 1
    assert totals.tokens == sum(len(t) for t in step.tokens[1:])
    assert totals.drafted.total() == len(step.drafted.depth) - step.drafted.request.count(0)
    assert totals.accepted.total() == totals.tokens - totals.decodes
    assert totals.selected.total() == len(step.drafted.depth)
