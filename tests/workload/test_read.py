"""Formats are told apart by content; whatever is wrong with a file is one line with a line number."""

import json
from pathlib import Path

import pytest

from adaserve.errors import InvalidTrace
from adaserve.workload import DEMO_MIX, read
from adaserve.workload.read import Trace

PAPER = {"emission_time_ms": 1500, "input_length": 3, "output_length": 9, "prompt": "one", "slo_ratio": 1.2}
FILES = {
    "the paper's": json.dumps([PAPER]),
    "JSON lines": '{"at": 1.5, "prompt": "one", "max_tokens": 9}\n',
    "Mooncake": '{"timestamp": 0, "input_length": 3, "output_length": 9, "hash_ids": [0]}\n',
    "Azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,3,9\n",
    "BurstGPT": "\ufeffTimestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n0,ChatGPT,3,9,12,API log\n",
}


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "trace.of-any-name"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", FILES)
def test_formats_are_told_apart(tmp_path: Path, name: str) -> None:
    trace = read(written(tmp_path, FILES[name]))
    assert trace.format == name
    found = trace.requests(DEMO_MIX, 0, 100.0)
    assert [arrival.max_tokens for arrival in found.arrivals] == [9]
    assert [arrival.at for arrival in found.arrivals] == trace.times
    assert len(trace.requests(DEMO_MIX, 0, 0.0)) == 0


def test_the_digest_is_the_content_s(tmp_path: Path) -> None:
    first = read(written(tmp_path, FILES["Azure"])).digest
    assert first == read(written(tmp_path, FILES["Azure"])).digest != read(written(tmp_path, FILES["Mooncake"])).digest


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_in_its_last_line_says_where(tmp_path: Path, name: str) -> None:
    whole = FILES[name].rstrip("\n")
    cut = whole[: whole.rindex("\n") + 5] if "\n" in whole else whole[: len(whole) // 2]
    with pytest.raises(InvalidTrace, match=f"line {1 + cut.count(chr(10))}"):
        read(written(tmp_path, cut))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("hello\n", "line 1: of no known format"),
        ("a,b,c\n1,2,3\n", "line 1: of no known format"),
        ('{"some": 1}\n', "line 1: of no known format.*it has the fields some"),
        ('{"emission_time_ms": 1,\n', "line 1: is not JSON"),
        (b"TIMESTAMP\n\xff\xfe", "line 2: is not UTF-8 text"),
    ],
)
def test_files_of_no_known_format(tmp_path: Path, content: str | bytes, reason: str) -> None:
    with pytest.raises(InvalidTrace, match=reason) as caught:
        read(written(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidTrace, match="cannot read trace .*nowhere: No such file"):
        read(tmp_path / "nowhere")


def test_entries_of_the_paper_s_format_have_lines(tmp_path: Path) -> None:
    text = json.dumps([PAPER, PAPER, PAPER | {"slo_ratio": 0}], indent=1)
    line = [number for number, words in enumerate(text.split("\n"), 1) if "{" in words][2]
    with pytest.raises(InvalidTrace, match=f"line {line}, entry 2: slo_ratio must be a multiple"):
        read(written(tmp_path, text))


SHARED = Path(__file__).parents[2] / ".." / "shared" / "data" / "traces"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the paper's traces are not here")
def test_the_paper_s_traces() -> None:
    for path in sorted(SHARED.glob("*.json")):
        trace = read(path)
        assert isinstance(trace, Trace) and trace.format == "the paper's"
        assert set(trace.requests(DEMO_MIX, 0, 360.1).classes) == {"coding", "chat", "summarization"}
