import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.errors import InvalidTrace
from adaserve.request import SLO
from adaserve.workload import Arrival, Workload
from adaserve.workload.jsonl import read_jsonl, write_jsonl

numbers = st.floats(0.1, 1e6)
slos = st.one_of(
    st.none(),
    st.builds(SLO, tpot_ms=st.none() | numbers, ttft_ms=st.none() | numbers),
    st.builds(SLO, tpot_multiple=numbers, ttft_ms=st.none() | numbers),
)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
arrivals = st.builds(
    Arrival,
    at=st.floats(0, 1e6),
    prompt=texts,
    class_name=texts,
    slo=slos,
    max_tokens=st.integers(1, 2**31 - 1),
    chat=st.booleans(),
    ignore_eos=st.booleans(),
    input_length=st.none() | st.integers(1, 10**6),
)
workloads = st.lists(arrivals, min_size=1, max_size=10).map(
    lambda items: Workload(tuple(sorted(items, key=lambda arrival: arrival.at)))
)
GOOD = {"at": 0, "prompt": "x", "max_tokens": 3}


def lines(text: str) -> list[str]:
    return text.split("\n")


@given(workload=workloads)
def test_what_is_written_is_read(workload: Workload) -> None:
    assert read_jsonl(lines(write_jsonl(workload)), "here") == workload


@given(workload=workloads, cut=st.floats(0, 1))
def test_a_truncated_file_is_an_error_at_its_last_line_or_a_shorter_workload(workload: Workload, cut: float) -> None:
    text = write_jsonl(workload)
    kept = lines(text[: round(len(text) * cut)])
    try:
        found = read_jsonl(kept, "here")
    except InvalidTrace as error:
        assert f"line {len(kept)}" in str(error) or "holds no requests" in str(error)
    else:
        assert found.arrivals == workload.arrivals[: len(found)]


def test_little_is_needed() -> None:
    arrival = read_jsonl([json.dumps(GOOD)], "here").arrivals[0]
    assert arrival == Arrival(0.0, "x", "default", None, 3)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "is not JSON, is the file truncated"),
        ("[1]", "must be an object, got list"),
        (json.dumps(GOOD | {"at": -1}), "at must be seconds, 0 or more, got -1"),
        (json.dumps(GOOD | {"at": True}), "at must be seconds"),
        (json.dumps(GOOD | {"at": float("nan")}), "at must be seconds"),
        (json.dumps(GOOD | {"prompt": ""}), "prompt must be a non-empty string"),
        (json.dumps(GOOD | {"class": 3}), "class must be a non-empty string, got 3"),
        (json.dumps(GOOD | {"max_tokens": 0}), "max_tokens must be a whole number of at least 1, got 0"),
        (json.dumps(GOOD | {"max_tokens": None}), "max_tokens must be a whole number of at least 1, got nothing"),
        (json.dumps(GOOD | {"chat": "yes"}), "chat must be true or false, got 'yes'"),
        (json.dumps(GOOD | {"slo": {"tpot_ms": -3}}), "slo.tpot_ms must be a finite positive number"),
        (json.dumps(GOOD | {"slo": {"speed": 3}}), "slo must be an object of numbers, with any of tpot_ms"),
        (json.dumps(GOOD | {"slo": 3}), "slo must be an object of numbers"),
        (json.dumps(GOOD | {"max_token": 3}), "unknown field 'max_token'; known are"),
    ],
)
def test_errors_name_the_line_and_the_reason(line: str, reason: str) -> None:
    with pytest.raises(InvalidTrace) as caught:
        read_jsonl([json.dumps(GOOD), "", line], "here")
    assert "here, line 3: " in str(caught.value) and reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_file() -> None:
    with pytest.raises(InvalidTrace, match="holds no requests"):
        read_jsonl(["", " "], "here")
