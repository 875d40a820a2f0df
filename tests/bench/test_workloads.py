"""What the options make of a trace, at each point of a sweep."""

import argparse
import json
import math
from collections import Counter
from pathlib import Path

import pytest

from adaserve.bench.runs import Point
from adaserve.bench.source import urgent_class
from adaserve.bench.workloads import add_workload_options, base_point, points_from, source_from
from adaserve.errors import InvalidConfig, InvalidTrace
from adaserve.request import SLO
from adaserve.workload import Arrival, Workload

BASELINE = 0.015


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    """200 requests, two a second, in the paper's format."""
    ratios = [1.2, 1.2, 1.2, -50, -150]
    entries = [
        {
            "emission_time_ms": 500 * n,
            "input_length": 5,
            "output_length": 100,
            "prompt": f"prompt {n}",
            "slo_ratio": ratios[n % 5],
        }
        for n in range(200)
    ]
    path = tmp_path_factory.mktemp("traces") / "trace.json"
    path.write_text(json.dumps(entries))
    return str(path)


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_workload_options(parser)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def workload(*arguments: str) -> Workload:
    args = parse(*arguments)
    return source_from(args).at(base_point(args), BASELINE)


def targets(found: Workload) -> dict[str, SLO | None]:
    return {arrival.class_name: arrival.slo for arrival in found.arrivals}


def test_by_default_the_trace_is_as_it_is(trace: str) -> None:
    found = workload(trace)
    assert len(found) == 200 and found.arrivals[-1].at == 99.5
    assert targets(found) == {"coding": SLO(tpot_multiple=1.2), "chat": SLO(tpot_ms=50), "summarization": SLO(tpot_ms=150)}


def test_the_beginning_can_be_passed_over(trace: str) -> None:
    found = workload(trace, "--start", "40", "--duration", "10", "--speed", "2", "--stop-at-eos")
    whole = workload(trace)
    assert [a.prompt for a in found.arrivals] == [a.prompt for a in whole.arrivals[80:120]]
    assert found.arrivals[0].at == 0 and found.arrivals[-1].at == 19.5 / 2
    assert not any(a.ignore_eos for a in found.arrivals) and all(a.ignore_eos for a in whole.arrivals)
    with pytest.raises(InvalidConfig, match="no request arrives"):
        workload(trace, "--start", "100")


def test_duration_is_of_the_replay_at_any_speed(trace: str) -> None:
    for speed in ("0.5", "1", "4"):
        found = workload(trace, "--duration", "10", "--speed", speed)
        assert len(found) == 20 * float(speed)
        assert found.arrivals[-1].at < 10


def test_scales_touch_what_they_are_for(trace: str) -> None:
    assert targets(workload(trace, "--slo-scale", "0.5"))["coding"] == SLO(tpot_multiple=0.6)
    assert targets(workload(trace, "--slo-scale", "0.5"))["chat"] == SLO(tpot_ms=50)
    assert targets(workload(trace, "--slo-scale", "0.5", "--urgent-class", "chat"))["chat"] == SLO(tpot_ms=25)
    assert targets(workload(trace, "--ms-scale", "2"))["chat"] == SLO(tpot_ms=100)
    assert targets(workload(trace, "--ms-scale", "auto"))["chat"] == SLO(tpot_ms=25)  # half the paper's baseline
    assert targets(workload(trace, "--slo-class", "chat=tpot:3x,ttft:9"))["chat"] == SLO(tpot_multiple=3, ttft_ms=9)


def test_lengths(trace: str) -> None:
    first = workload(trace, "--prompt-scale", "0.5", "--output-scale", "0.1").arrivals[0]
    assert (first.prompt, first.max_tokens) == ("prom", 10)


def test_the_urgent_share(trace: str) -> None:
    shares = Counter(arrival.class_name for arrival in workload(trace, "--urgent", "0.2").arrivals)
    assert shares["coding"] / 200 == pytest.approx(0.2, abs=0.1)
    assert shares["chat"] / 200 == pytest.approx(0.4, abs=0.1)


def test_own_prompts_at_the_trace_s_times(trace: str) -> None:
    found = workload(trace, "--own-prompts", "--mix", "chat=1", "--duration", "10")
    assert [arrival.at for arrival in found.arrivals] == [0.5 * n for n in range(20)]
    assert found.classes == ("chat",)


def test_generated_workloads_of_a_higher_speed_begin_alike() -> None:
    slow, fast = (workload("generated", "--duration", "20", "--rate", "5", "--speed", speed) for speed in ("1", "2"))
    assert len(fast) > 1.5 * len(slow)
    assert [a.prompt for a in slow.arrivals] == [a.prompt for a in fast.arrivals[: len(slow)]]
    assert [a.at for a in slow.arrivals] == pytest.approx([2 * a.at for a in fast.arrivals[: len(slow)]])
    assert workload("generated", "--duration", "20", "--seed", "1") != workload("generated", "--duration", "20")
    assert len(workload("generated", "--duration", "60", "--fluctuate", "30")) > 0


def test_points(trace: str) -> None:
    assert points_from(parse(trace, "--speed", "2", "--urgent", "0.3")) == (Point(2.0, 0.3),)
    swept = parse(
        trace, "--speed", "2", "--sweep", "rate=1,2", "--sweep", "urgent=0.2", "--sweep", "slo-scale=0.8,1", "--sweep", "seed=4"
    )
    assert points_from(swept) == (
        Point(1.0), Point(2.0), Point(2.0, 0.2), Point(2.0, None, 0.8), Point(2.0, seed=4),
    )  # fmt: skip
    assert base_point(swept) == Point(2.0)


@pytest.mark.parametrize(
    ("sweep", "reason"),
    [
        ("load=1", "a sweep reads like rate=0.8"),
        ("rate", "a sweep reads like"),
        ("rate=", "must be a number"),
        ("rate=1,-2", "must be a positive number, got -2"),
        ("urgent=1.2", "must be between 0 and 1"),
        ("seed=x", "invalid literal"),
    ],
)
def test_senseless_sweeps(trace: str, sweep: str, reason: str) -> None:
    with pytest.raises(InvalidConfig, match=reason):
        points_from(parse(trace, "--sweep", sweep))


@pytest.mark.parametrize(
    "options",
    [
        ["--speed", "0"], ["--duration", "inf"], ["--slo-scale", "nan"], ["--urgent", "2"], ["--mix", "poetry=1"],
        ["--mix", "chat=0.5"], ["--prompt-scale", "1.5"], ["--ms-scale", "much"],
    ],
)  # fmt: skip
def test_senseless_options(trace: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(trace, *options)
    assert options[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["generated"], "give --duration"),
        (["generated", "--duration", "5", "--cv", "-1"], "--cv must be between"),
        (["TRACE", "--urgent-class", "poetry"], "there is no class 'poetry'.*coding"),
        (["TRACE", "--prompt-scale", "0"], "the prompts' scale must be above 0"),
        (["TRACE", "--slo-class", "chat"], "reads like coding=tpot:50"),
        (["TRACE", "--slo-class", "poetry=tpot:50"], "there is no class 'poetry'.*coding"),
        (["generated", "--duration", "5", "--slo-class", "poetry=tpot:50"], "there is no class 'poetry'.*coding"),
        (["generated", "--duration", "0.001", "--rate", "0.001"], "no request arrives within"),
        (["generated", "--duration", "50", "--mix", "chat=1", "--urgent", "0.5"], "has no class beside"),
    ],
)
def test_what_cannot_be_made(trace: str, arguments: list[str], reason: str) -> None:
    with pytest.raises(InvalidConfig, match=reason):
        workload(*(trace if argument == "TRACE" else argument for argument in arguments))


def test_a_missing_trace() -> None:
    with pytest.raises(InvalidTrace, match="cannot read"):
        source_from(parse("nowhere.json"))


def arrivals(*slos: tuple[str, SLO | None]) -> Workload:
    return Workload(tuple(Arrival(0.0, "x", name, slo, 1) for name, slo in slos))


def test_the_urgent_class_of_a_workload() -> None:
    ms, multiple = SLO(tpot_ms=5), SLO(tpot_multiple=2)
    assert urgent_class(arrivals(("chat", ms), ("coding", None))) == "coding"
    assert urgent_class(arrivals(("a", ms), ("b", multiple), ("c", SLO(tpot_multiple=1.5)))) == "c"
    assert urgent_class(arrivals(("a", SLO(tpot_ms=9)), ("b", ms))) == "b"
    assert urgent_class(arrivals(("a", SLO(ttft_ms=9)), ("b", None))) is None


def test_facts_are_json(trace: str) -> None:
    facts = source_from(parse(trace, "--duration", "10")).facts
    assert json.loads(json.dumps(facts)) == facts
    assert facts["digest"] and facts["duration_s"] == 10
    assert source_from(parse(trace)).duration == math.inf
    assert Path(trace).exists()
