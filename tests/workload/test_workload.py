import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.request import SLO
from adaserve.workload import Arrival, Workload
from adaserve.workload.made_up import Part

slos = st.one_of(
    st.none(),
    st.builds(SLO, tpot_ms=st.floats(0.1, 1e4), ttft_ms=st.none() | st.floats(0.1, 1e4)),
    st.builds(SLO, tpot_multiple=st.floats(0.1, 100)),
)
workloads = st.lists(st.tuples(st.floats(0, 100), slos), max_size=20).map(
    lambda items: Workload(
        tuple(Arrival(at, "text", "any", slo, 8) for at, slo in sorted(items, key=lambda item: item[0])),
    )
)


@given(workload=workloads, speed=st.floats(0.1, 10))
def test_speed_changes_times_alone(workload: Workload, speed: float) -> None:
    faster = workload.at_speed(speed)
    assert [arrival.at for arrival in faster.arrivals] == [arrival.at / speed for arrival in workload.arrivals]
    assert [replace(arrival, at=0) for arrival in faster.arrivals] == [replace(arrival, at=0) for arrival in workload.arrivals]


@given(workload=workloads, factor=st.floats(0.1, 10))
def test_milliseconds_are_scaled_and_multiples_left_alone(workload: Workload, factor: float) -> None:
    for before, in_ms in zip(workload.arrivals, workload.scale_ms(factor).arrivals, strict=True):
        if before.slo is None:
            assert in_ms.slo is None
        elif before.slo.tpot_ms is not None:
            assert in_ms.slo is not None and in_ms.slo.tpot_ms == before.slo.tpot_ms * factor
            assert (in_ms.slo.ttft_ms is None) == (before.slo.ttft_ms is None)
        else:
            assert in_ms == before


@given(workload=workloads, seconds=st.floats(0, 100))
def test_cutting_keeps_what_comes_before(workload: Workload, seconds: float) -> None:
    kept = workload.until(seconds)
    assert all(arrival.at < seconds for arrival in kept.arrivals)
    assert all(arrival.at >= seconds for arrival in workload.arrivals[len(kept) :])


@given(workload=workloads, seconds=st.floats(0, 100))
def test_passing_over_the_beginning_keeps_what_comes_then(workload: Workload, seconds: float) -> None:
    kept = workload.since(seconds)
    assert len(workload.until(seconds)) + len(kept) == len(workload)
    later = workload.arrivals[len(workload) - len(kept) :]
    assert [arrival.at for arrival in kept.arrivals] == [arrival.at - seconds for arrival in later]
    assert [replace(arrival, at=0) for arrival in kept.arrivals] == [replace(arrival, at=0) for arrival in later]


def test_outputs_end_where_the_model_says_so() -> None:
    workload = Workload((Arrival(0.0, "text", "any", None, 8, ignore_eos=True), Arrival(1.0, "text", "any", None, 8)))
    assert [(a.ignore_eos, a.max_tokens) for a in workload.stopping_at_eos().arrivals] == [(False, 8), (False, 8)]


@pytest.mark.parametrize("times", [(1.0, 0.5), (-1.0,), (math.nan,)])
def test_times_must_ascend_from_zero(times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="arrival"):
        Workload(tuple(Arrival(at, "text", "any", None, 8) for at in times))


@pytest.mark.parametrize("speed", [0, -1, math.nan, math.inf])
def test_senseless_speeds(speed: float) -> None:
    with pytest.raises(ValueError, match="speed"):
        Workload(()).at_speed(speed)


@given(workload=workloads, factor=st.floats(0.5, 2))
def test_scaling_a_class_leaves_the_others_alone(workload: Workload, factor: float) -> None:
    mixed = Workload(tuple(replace(a, class_name="ab"[index % 2]) for index, a in enumerate(workload.arrivals)))
    for before, after in zip(mixed.arrivals, mixed.scale_class("a", factor).arrivals, strict=True):
        if before.class_name == "b" or before.slo is None:
            assert after == before
            continue
        assert after.slo is not None and after.slo.ttft_ms == before.slo.ttft_ms
        for name in ("tpot_ms", "tpot_multiple"):
            value = getattr(before.slo, name)
            assert getattr(after.slo, name) == (None if value is None else value * factor)


@given(workload=workloads)
def test_targets_of_a_class_can_be_replaced(workload: Workload) -> None:
    slo = SLO(ttft_ms=5.0)
    assert all(arrival.slo == slo for arrival in workload.with_slos({"any": slo}).arrivals)
    assert workload.with_slos({"other": slo}) == workload


@given(length=st.integers(1, 99), tokens=st.integers(1, 99), prompt=st.floats(0.01, 1), output=st.floats(0.01, 3))
def test_lengths_are_scaled_and_never_vanish(length: int, tokens: int, prompt: float, output: float) -> None:
    text = "".join(chr(97 + index % 26) for index in range(length))
    plain = Arrival(0.0, text, "any", None, tokens, input_length=length)
    made_up = replace(plain, parts=(Part("chat", 1, length), Part("chat", 2, length)), input_length=2 * length)
    short, shorter = Workload((plain, made_up)).scale_lengths(prompt, output).arrivals
    assert text.startswith(short.prompt) and len(short.prompt) == short.input_length == max(1, round(length * prompt))
    assert short.max_tokens == shorter.max_tokens == max(1, round(tokens * output))
    assert sum(part.tokens for part in shorter.parts) == shorter.input_length == 2 * max(1, round(length * prompt))


@pytest.mark.parametrize(("prompt", "output"), [(0, 1), (1.1, 1), (1, 0), (math.nan, 1), (1, math.inf)])
def test_senseless_lengths(prompt: float, output: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        Workload(()).scale_lengths(prompt, output)
