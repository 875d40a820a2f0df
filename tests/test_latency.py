"""The latency model: interpolation, and correction from measurements."""

import math
import random
from bisect import bisect_right
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.latency import LatencyModel
from adaserve.profile import Profile
from adaserve.step import PhaseTimes, StepShape
from tests.profiles import STAIRS, STEEP, curves

rising = curves.map(lambda c: dict(zip(sorted(c), sorted(c.values()), strict=True)))
shapes = st.builds(
    StepShape,
    rows=st.integers(1, 700),
    context=st.integers(0, 100_000),
    draft_rows=st.lists(st.integers(1, 300), max_size=6).map(tuple),
    draft_context=st.integers(0, 100_000),
)


def measured(truth: LatencyModel, shape: StepShape, factor: float = 1.0) -> PhaseTimes:
    """What a machine that behaves like `truth` would measure, times `factor`."""
    phases = truth.predict_phases(shape)
    return PhaseTimes(
        schedule=phases.overhead * 0.25 * factor,
        speculate=phases.speculate * factor,
        select=phases.overhead * 0.25 * factor,
        verify=phases.verify * factor,
        commit=phases.overhead * 0.5 * factor,
    )


def slower(profile: Profile, factor: float) -> Profile:
    """The profile of a machine that takes `factor` times as long for everything."""
    return replace(
        profile,
        verify_ms_by_rows={r: c * factor for r, c in profile.verify_ms_by_rows.items()},
        draft_step_ms_by_rows={r: c * factor for r, c in profile.draft_step_ms_by_rows.items()},
        draft_next_ms_by_rows={r: c * factor for r, c in profile.draft_next_ms_by_rows.items()},
        attention_ms_per_1000_context_tokens=profile.attention_ms_per_1000_context_tokens * factor,
        draft_attention_ms_per_1000_context_tokens=profile.draft_attention_ms_per_1000_context_tokens * factor,
        step_overhead_ms=profile.step_overhead_ms * factor,
    )


def random_shape(draw: random.Random) -> StepShape:
    passes = tuple(draw.randint(1, 96) for _ in range(draw.randint(1, 6)))
    return StepShape(draw.randint(1, 512), draw.randint(0, 30_000), passes, draw.randint(0, 30_000))


# Prediction.


@given(curves)
def test_measured_points_are_predicted_as_measured(curve: dict[int, float]) -> None:
    model = LatencyModel(replace(STAIRS, verify_ms_by_rows=curve, step_overhead_ms=0.0))
    for rows, cost in curve.items():
        assert model.predict(StepShape(rows, 0)) == pytest.approx(cost / 1e3)


@given(curves, st.integers(1, 700))
def test_between_points_the_prediction_lies_between_their_costs(curve: dict[int, float], rows: int) -> None:
    predicted = LatencyModel(replace(STAIRS, verify_ms_by_rows=curve, step_overhead_ms=0.0)).predict(StepShape(rows, 0)) * 1e3
    below, above = [r for r in curve if r <= rows], [r for r in curve if r >= rows]
    if below and above:
        ends = sorted((curve[max(below)], curve[min(above)]))
        assert ends[0] * (1 - 1e-9) <= predicted <= ends[1] * (1 + 1e-9)
    elif above:
        assert predicted == pytest.approx(curve[min(above)])
    else:
        assert predicted >= curve[max(below)] * (1 - 1e-9)


@given(curves, st.lists(st.tuples(st.integers(1, 700), st.floats(0.3, 3.0)), min_size=1, max_size=20))
def test_a_bent_curve_stays_linear_between_its_points(curve: dict[int, float], learned: list[tuple[int, float]]) -> None:
    """Slopes are kept beside the corrected points: none must be left behind."""
    model = LatencyModel(replace(STAIRS, verify_ms_by_rows=curve))
    for rows, factor in learned:
        seconds = model.predict_phases(shape := StepShape(rows, 0)).verify
        model.observe(shape, PhaseTimes(verify=factor * seconds))
    points = sorted(curve)
    cost = [model.predict_phases(StepShape(rows, 0)).verify for rows in points]
    for rows in range(points[0], points[-1]):
        left = bisect_right(points, rows) - 1
        share = (rows - points[left]) / (points[left + 1] - points[left])
        expected = cost[left] + share * (cost[left + 1] - cost[left])
        assert model.predict_phases(StepShape(rows, 0)).verify == pytest.approx(expected)
    if len(points) > 1:
        slopes = [(cost[-1] - cost[at]) / (points[-1] - points[at]) for at in (-2, 0)]  # the last one, and of all
        last = max(*slopes, 0.0)
        assert model.predict_phases(StepShape(points[-1] + 10, 0)).verify == pytest.approx(cost[-1] + 10 * last)


@given(rising, shapes)
def test_more_work_never_takes_less_time(curve: dict[int, float], shape: StepShape) -> None:
    model = LatencyModel(replace(STAIRS, verify_ms_by_rows=curve, draft_step_ms_by_rows=curve))
    least = model.predict(shape) * (1 - 1e-9)
    assert model.predict(replace(shape, rows=shape.rows + 1)) >= least
    assert model.predict(replace(shape, context=shape.context + 1)) >= least
    assert model.predict(replace(shape, draft_rows=(*shape.draft_rows, 1))) >= least
    assert model.predict(replace(shape, draft_context=shape.draft_context + 1)) >= least


def test_the_last_slope_goes_on_behind_the_last_point() -> None:
    model = LatencyModel(replace(STAIRS, step_overhead_ms=0.0))
    assert model.predict(StepShape(512 + 128, 0)) == pytest.approx(0.056 + 128 * 0.028 / 256)


@given(shapes)
def test_phases_add_up(shape: StepShape) -> None:
    model = LatencyModel(STAIRS)
    phases = model.predict_phases(shape)
    assert model.predict(shape) == pytest.approx(phases.total)
    alone = model.predict_phases(StepShape(0, 0, shape.draft_rows, shape.draft_context))
    assert alone.verify == 0
    assert alone.speculate == phases.speculate
    assert phases.overhead == pytest.approx(4e-4)


def test_the_baseline_is_in_seconds_and_never_corrected() -> None:
    model = LatencyModel(STAIRS)
    for _ in range(50):
        model.observe(StepShape(1, 0), PhaseTimes(verify=1.0))
    assert model.baseline == 0.017


# Correction.


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.0, 1.5, 2.0])
def test_a_wrong_profile_is_corrected_within_200_noisy_steps(factor: float) -> None:
    draw = random.Random(7)
    truth, model = LatencyModel(slower(STAIRS, factor)), LatencyModel(STAIRS)
    for _ in range(200):
        shape = random_shape(draw)
        model.observe(shape, measured(truth, shape, draw.gauss(1, 0.05)))
    for _ in range(100):
        believed, true = model.predict_phases(shape := random_shape(draw)), truth.predict_phases(shape)
        assert believed.speculate == pytest.approx(true.speculate, rel=0.08)
        assert believed.verify == pytest.approx(true.verify, rel=0.08)
        assert believed.total == pytest.approx(true.total, rel=0.08)


def test_what_was_learned_at_one_shape_helps_at_others() -> None:
    truth, model = LatencyModel(slower(STAIRS, 2.0)), LatencyModel(STAIRS)
    seen, other = StepShape(40, 2000, (16, 8), 2000), StepShape(300, 9000, (64, 64, 64), 8000)
    for _ in range(200):
        model.observe(seen, measured(truth, seen))
    assert model.predict(seen) == pytest.approx(truth.predict(seen), rel=0.02)
    assert model.predict(other) == pytest.approx(truth.predict(other), rel=0.2)


def test_a_curve_of_another_shape_is_bent() -> None:
    """Where the target is 30% dearer at many rows and right at few, no single factor fits both ends."""
    bent = {rows: cost * (1.3 if rows >= 256 else 1.0) for rows, cost in STAIRS.verify_ms_by_rows.items()}
    truth, model = LatencyModel(replace(STAIRS, verify_ms_by_rows=bent)), LatencyModel(STAIRS)
    few, many = StepShape(32, 500), StepShape(384, 500)
    for _ in range(400):
        model.observe(few, measured(truth, few))
        model.observe(many, measured(truth, many))
    assert model.predict(few) == pytest.approx(truth.predict(few), rel=0.02)
    assert model.predict(many) == pytest.approx(truth.predict(many), rel=0.02)


@given(shapes, st.floats(1e-6, 1e6))
def test_one_outlier_hardly_moves_a_prediction(shape: StepShape, factor: float) -> None:
    model = LatencyModel(STAIRS)
    before = model.predict(shape)
    model.observe(shape, measured(model, shape, factor))
    assert model.predict(shape) == pytest.approx(before, rel=0.03)


@given(shapes)
def test_a_right_model_stays_as_it_is(shape: StepShape) -> None:
    model, truth = LatencyModel(STAIRS), LatencyModel(STAIRS)
    for _ in range(5):
        model.observe(shape, measured(truth, shape))
    assert model.predict(shape) == pytest.approx(truth.predict(shape))
    assert model.error == pytest.approx(0, abs=1e-9)


@given(shapes, st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=5, max_size=5))
def test_nonsense_measurements_never_break_the_model(shape: StepShape, times: list[float]) -> None:
    model = LatencyModel(STAIRS)
    for _ in range(20):
        model.observe(shape, PhaseTimes(*times))
        assert math.isfinite(model.predict(shape))
        assert model.predict(shape) > 0
        assert math.isfinite(model.error)


def test_time_that_no_curve_predicts_is_learned_as_overhead() -> None:
    """An n-gram drafter has no rows, and a profile may know no overhead: both are still learned."""
    model = LatencyModel(replace(STAIRS, step_overhead_ms=0.0, draft_step_ms_by_rows={}))
    shape = StepShape(8, 0)
    verify = model.predict(shape)
    for _ in range(300):
        model.observe(shape, PhaseTimes(schedule=0.001, speculate=0.002, verify=verify))
    assert model.predict(shape) == pytest.approx(verify + 0.003, rel=0.01)


def test_error_is_the_mean_relative_error() -> None:
    model = LatencyModel(STAIRS)
    assert model.error == 0
    shape = StepShape(64, 0)
    model.observe(shape, measured(model, shape, 2.0))
    assert model.error == pytest.approx(0.5)
    truth = LatencyModel(STAIRS)
    model.observe(shape, measured(truth, shape))
    assert model.error == pytest.approx(0.25, abs=0.02)


@given(curves, curves, shapes)
def test_further_draft_passes_have_a_curve_of_their_own(
    first: dict[int, float], further: dict[int, float], shape: StepShape
) -> None:
    """Without one they cost as much as the first."""
    passes = shape.draft_rows or (1,)

    def speculation(curve: dict[int, float], rows: tuple[int, ...]) -> float:
        profile = replace(STAIRS, draft_step_ms_by_rows=first, draft_next_ms_by_rows=curve)
        return LatencyModel(profile).predict_phases(StepShape(shape.rows, shape.context, rows)).speculate

    alone = [speculation(further, (rows, rows)) - speculation(further, (rows,)) for rows in passes[1:]]
    assert speculation(further, passes) == pytest.approx(speculation({}, passes[:1]) + sum(alone))
    assert speculation({}, passes) == pytest.approx(speculation(first, passes))


@given(shapes, st.floats(0.0, 0.5), st.floats(0.0, 1.0))
def test_rows_of_a_prompt_save_their_share_of_what_a_pass_of_them_saves(shape: StepShape, saved: float, part: float) -> None:
    """Of all rows but one, all of it."""
    whole = shape.rows - 1
    model = LatencyModel(replace(STAIRS, prompt_saves_ms_by_rows={shape.rows: saved}))
    plain = model.predict(shape)
    assert plain - model.predict(replace(shape, prompt=whole)) == pytest.approx(saved / 1e3 if whole else 0.0, abs=1e-12)
    prompt = round(part * whole)
    assert plain - model.predict(replace(shape, prompt=prompt)) == pytest.approx(saved / 1e3 * prompt / max(1, whole), abs=1e-12)


@given(st.integers(1, 60), st.integers(0, 40), st.floats(0.0, 2.0))
def test_added_rows_of_a_prompt_cost_what_prediction_says(rows: int, most: int, saved: float) -> None:
    model = LatencyModel(replace(STAIRS, prompt_saves_ms_by_rows={1: 0.0, 64: saved}))
    for added, seconds in enumerate(model.added_by_prompts(rows, most, 1.0)):
        expected = model.predict(StepShape(rows + added, 0, prompt=added)) - model.predict(StepShape(rows, 0))
        assert seconds == pytest.approx(max(0.0, expected), abs=1e-12)


@given(
    st.lists(st.integers(1, 600), min_size=1, max_size=5),
    st.integers(1, 99),
    st.integers(1, 99),
    st.integers(0, 999),
    st.integers(0, 9),
)
def test_all_depths_at_once_cost_what_prediction_says(
    rows: list[int], first: int, further: int, context: int, prompt: int
) -> None:
    profile = replace(STAIRS, draft_next_ms_by_rows={1: 0.2, 64: 0.4}, prompt_saves_ms_by_rows={8: 0.5}, after_draft_ms=0.3)
    model = LatencyModel(profile)
    passes = [(first, *[further] * (depth - 1)) if depth else () for depth in range(len(rows))]
    expected = [model.predict(StepShape(r, context, p, prompt=prompt)) for r, p in zip(rows, passes, strict=True)]
    assert model.by_depth(rows, first, further, context=context, prompt=prompt) == expected
    assert model.reading(first) == model.predict_phases(StepShape(0, 0, (first,))).speculate


@given(shapes, st.floats(0.0, 2.0))
def test_a_pass_after_a_draft_takes_longer_by_what_was_measured(shape: StepShape, after: float) -> None:
    model, other = LatencyModel(replace(STAIRS, after_draft_ms=after)), LatencyModel(STAIRS)
    late = model.predict_phases(shape).verify - other.predict_phases(shape).verify
    assert late == pytest.approx(after / 1e3 if shape.draft_rows else 0.0, abs=1e-12)


@pytest.mark.parametrize("rows", [1, 20, 32, 200, 300])
def test_added_rows_cost_what_prediction_says(rows: int) -> None:
    latency = LatencyModel(STEEP)
    for added, seconds in enumerate(latency.prices(rows, 90, 2.0)):
        expected = latency.predict(StepShape(rows + added, 0)) - latency.predict(StepShape(rows, 0))
        assert 2.0 * seconds == pytest.approx(expected, abs=1e-12)
