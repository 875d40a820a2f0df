import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.errors import InvalidTrace
from adaserve.request import SLO
from adaserve.workload.trace import class_of, read_trace

GOOD: dict[str, Any] = {
    "emission_time_ms": 1500.0,
    "input_length": 3,
    "output_length": 256,
    "prompt": "one two",
    "slo_ratio": 1.2,
}


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(content))
    return path


def test_an_entry_becomes_an_arrival(tmp_path: Path) -> None:
    arrival = read_trace(write(tmp_path, [GOOD])).arrivals[0]
    assert (arrival.at, arrival.prompt, arrival.max_tokens, arrival.ignore_eos) == (1.5, "one two", 256, True)
    assert (arrival.class_name, arrival.slo) == ("coding", SLO(tpot_multiple=1.2))


@pytest.mark.parametrize(
    ("ratio", "name", "slo"),
    [
        (1.2, "coding", SLO(tpot_multiple=1.2)),
        (-50, "chat", SLO(tpot_ms=50)),
        (-150.0, "summarization", SLO(tpot_ms=150)),
        (0.9, "0.9x", SLO(tpot_multiple=0.9)),
        (-80, "80ms", SLO(tpot_ms=80)),
    ],
)
def test_the_sign_of_the_target(tmp_path: Path, ratio: float, name: str, slo: SLO) -> None:
    arrival = read_trace(write(tmp_path, [GOOD | {"slo_ratio": ratio}])).arrivals[0]
    assert (arrival.class_name, arrival.slo) == (name, slo)


@given(st.floats(-1e6, 1e6).filter(lambda ratio: ratio != 0))
def test_every_target_has_a_class(ratio: float) -> None:
    assert class_of(ratio)


def test_entries_come_out_in_order_of_time(tmp_path: Path) -> None:
    times = [30.0, 10.0, 20.0]
    workload = read_trace(write(tmp_path, [GOOD | {"emission_time_ms": at} for at in times]))
    assert [arrival.at for arrival in workload.arrivals] == [0.01, 0.02, 0.03]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"emission_time_ms": -1}, "emission_time_ms must not be negative, got -1"),
        ({"emission_time_ms": "soon"}, "emission_time_ms must be a number, got 'soon'"),
        ({"emission_time_ms": True}, "emission_time_ms must be a number, got True"),
        ({"emission_time_ms": float("nan")}, "emission_time_ms must be finite, got nan"),
        ({"output_length": 0}, "output_length must be a whole number of at least 1, got 0"),
        ({"output_length": 2.5}, "output_length must be a whole number of at least 1, got 2.5"),
        ({"output_length": 10**400}, "output_length must be finite, got inf"),
        ({"prompt": ""}, "prompt must be a non-empty string"),
        ({"prompt": None}, "prompt must be a non-empty string"),
        ({"slo_ratio": 0}, "slo_ratio must be a multiple of the baseline"),
        ({"slo_ratio": float("-inf")}, "slo_ratio must be finite, got -inf"),
    ],
)
def test_errors_name_the_entry_and_the_reason(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidTrace) as caught:
        read_trace(write(tmp_path, [GOOD, GOOD | change]))
    assert "entry 1" in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    entry = {name: value for name, value in GOOD.items() if name != "slo_ratio"}
    with pytest.raises(InvalidTrace, match="entry 0: slo_ratio must be a number, got nothing"):
        read_trace(write(tmp_path, [entry]))


@pytest.mark.parametrize("content", [{}, [], "text", 3, None])
def test_a_trace_is_a_list(tmp_path: Path, content: object) -> None:
    with pytest.raises(InvalidTrace, match="non-empty JSON list"):
        read_trace(write(tmp_path, content))


@pytest.mark.parametrize("content", [b"", b"[{", b"\xff\xfe\x00", b"[" * 200_000])
def test_broken_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(content)
    with pytest.raises(InvalidTrace, match="is not JSON"):
        read_trace(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidTrace, match="cannot read trace .*nowhere.json: No such file"):
        read_trace(tmp_path / "nowhere.json")
