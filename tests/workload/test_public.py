"""The public formats, in small imitations of the real files."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.errors import InvalidTrace
from adaserve.workload.lengths import LengthRow
from adaserve.workload.public import read_azure, read_burstgpt, read_mooncake

lengths = st.integers(1, 10**6)
START = datetime(2023, 11, 16, 18, 15, 46, tzinfo=UTC)
GOOD = {"timestamp": 27482, "input_length": 600, "output_length": 52, "hash_ids": [46, 47]}

rows = st.lists(st.tuples(st.integers(0, 10**7), lengths, lengths), min_size=1, max_size=10).map(sorted)


def expected(found: list[tuple[int, int, int]], unit: float) -> list[LengthRow]:
    return [LengthRow(pytest.approx((at - found[0][0]) * unit), *length) for at, *length in found]


@given(rows)
def test_mooncake(found: list[tuple[int, int, int]]) -> None:
    text = "\n".join(json.dumps({"timestamp": at, "input_length": i, "output_length": o}) for at, i, o in found)
    assert read_mooncake(text, "here") == expected(found, 1e-3)


@given(rows)
def test_azure(found: list[tuple[int, int, int]]) -> None:
    times = [(START + timedelta(milliseconds=at)).strftime("%Y-%m-%d %H:%M:%S.%f") + "0" for at, _, _ in found]
    lines = [f"{time},{i},{o}" for time, (_, i, o) in zip(times, found, strict=True)]
    assert read_azure("TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + "\r\n".join(lines), "here") == expected(found, 1e-3)


@given(rows)
def test_burstgpt(found: list[tuple[int, int, int]]) -> None:
    lines = [f"{at},ChatGPT,{i},{o},{i + o},Conversation log" for at, i, o in found]
    text = "\n".join(["Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type", *lines])
    assert read_burstgpt(text, "here") == expected(found, 1.0)


def test_hashes_are_kept() -> None:
    assert read_mooncake(json.dumps(GOOD), "here") == [LengthRow(0.0, 600, 52, (46, 47))]


def test_azure_of_2024_states_its_time_zone() -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00+00:00,5,6\n2024-05-10 00:00:00.25+00:00,7,8\n"
    assert [row.at for row in read_azure(text, "here")] == [0.0, 0.25]


def test_burstgpt_requests_that_failed_are_left_out() -> None:
    text = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    text += "5,a,1,GPT-4,40,0,40,API log\n9,a,1,GPT-4,40,30,70,API log\n"
    assert read_burstgpt(text, "here") == [LengthRow(0.0, 40, 30)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (json.dumps(GOOD)[:-5], "is not JSON, is the file truncated"),
        ("[]", "must be an object, got list"),
        (json.dumps(GOOD | {"timestamp": -1}), "timestamp must be a number, 0 or more, got -1"),
        (
            json.dumps({k: v for k, v in GOOD.items() if k != "output_length"}),
            "output_length must be a number, 0 or more, got nothing",
        ),
        (json.dumps(GOOD | {"input_length": 0}), "input_length must be a whole number of at least 1, got 0"),
        (json.dumps(GOOD | {"hash_ids": [1, "a"]}), "hash_ids must be a list of whole numbers"),
    ],
)
def test_mooncake_errors(line: str, reason: str) -> None:
    with pytest.raises(InvalidTrace) as caught:
        read_mooncake(f"{json.dumps(GOOD)}\n{line}\n", "here")
    assert "here, line 2: " in str(caught.value) and reason in str(caught.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2023-11-16 18:15:46.68,374", "2 columns where the header has 3; is the file truncated?"),
        ("yesterday,374,44", "TIMESTAMP must read like 2023-11-16 18:15:46.68, got 'yesterday'"),
        ("2023-11-16 18:15:46.68,-1,44", "ContextTokens must be a number, 0 or more, got '-1'"),
        ("2023-11-16 18:15:46.68,374,", "GeneratedTokens must be a number, 0 or more, got ''"),
    ],
)
def test_table_errors(line: str, reason: str) -> None:
    with pytest.raises(InvalidTrace) as caught:
        read_azure(f"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n{line}\n", "here")
    assert "here, line 3: " in str(caught.value) and reason in str(caught.value)


def test_no_requests() -> None:
    with pytest.raises(InvalidTrace, match="holds no requests"):
        read_azure("TIMESTAMP,ContextTokens,GeneratedTokens\n", "here")
