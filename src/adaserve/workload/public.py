"""Readers of public traces of lengths: Mooncake's JSON lines, the Azure LLM inference and BurstGPT tables.

    Mooncake   {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, ...]}   timestamp in ms
    Azure      TIMESTAMP,ContextTokens,GeneratedTokens            TIMESTAMP like 2023-11-16 18:15:46.6805900, UTC
    BurstGPT   Timestamp,...,Request tokens,Response tokens,...   Timestamp in seconds; 0 response tokens: the request had failed

Times come out relative to the trace's first request. Sources: github.com/kvcache-ai/Mooncake,
github.com/Azure/AzurePublicDataset, github.com/HPMLL/BurstGPT.
"""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

from adaserve.errors import InvalidTrace
from adaserve.workload.lengths import LengthRow

AZURE = ("timestamp", "contexttokens", "generatedtokens")
BURSTGPT = ("timestamp", "request tokens", "response tokens")


def is_mooncake(first: object) -> bool:
    """Whether the first object of a file of JSON lines is a Mooncake request."""
    return isinstance(first, dict) and "timestamp" in first and "input_length" in first


def is_azure(header: Sequence[str]) -> bool:
    """Whether a table's header is that of an Azure LLM trace."""
    return set(AZURE) <= set(_plain(header))


def is_burstgpt(header: Sequence[str]) -> bool:
    """Whether a table's header is that of a BurstGPT trace."""
    return set(BURSTGPT) <= set(_plain(header))


def read_mooncake(text: str, where: str) -> list[LengthRow]:
    """Read Mooncake's JSON lines; `where` names the file in errors. Raises InvalidTrace with the line's number."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidTrace(f"{place}: is not JSON, is the file truncated? {error}") from None
        if not isinstance(entry, dict):
            raise InvalidTrace(f"{place}: must be an object, got {type(entry).__name__}")
        hashes = entry.get("hash_ids")
        if hashes is not None and not (isinstance(hashes, list) and all(type(key) is int and key >= 0 for key in hashes)):
            raise InvalidTrace(f"{place}: hash_ids must be a list of whole numbers, 0 or more")
        rows.append(
            LengthRow(
                at=_seconds(entry.get("timestamp"), "timestamp", place) / 1e3,
                input_length=_length(entry.get("input_length"), "input_length", place),
                output_length=_length(entry.get("output_length"), "output_length", place),
                blocks=tuple(hashes) if hashes else None,
            )
        )
    return _from_zero(rows, where)


def read_azure(text: str, where: str) -> list[LengthRow]:
    """Read an Azure LLM inference table. Raises InvalidTrace with the line's number."""
    rows = []
    start: datetime | None = None
    for place, cell in _table(text, where, AZURE):
        stamp = cell["timestamp"]
        try:
            moment = datetime.fromisoformat(stamp)
        except ValueError:
            raise InvalidTrace(f"{place}: TIMESTAMP must read like 2023-11-16 18:15:46.68, got {stamp[:40]!r}") from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        start = start or moment
        rows.append(
            LengthRow(
                (moment - start).total_seconds(),  # from a near moment: seconds since 1970 would cost the microseconds
                _length(cell["contexttokens"], "ContextTokens", place),
                _length(cell["generatedtokens"], "GeneratedTokens", place),
            )
        )
    return _from_zero(rows, where)


def read_burstgpt(text: str, where: str) -> list[LengthRow]:
    """Read a BurstGPT table, leaving out the requests that failed there. Raises InvalidTrace with the line's number."""
    rows = []
    for place, cell in _table(text, where, BURSTGPT):
        answer = _seconds(cell["response tokens"], "Response tokens", place)
        if answer == 0:
            continue
        rows.append(
            LengthRow(
                _seconds(cell["timestamp"], "Timestamp", place),
                _length(cell["request tokens"], "Request tokens", place),
                _length(cell["response tokens"], "Response tokens", place),
            )
        )
    return _from_zero(rows, where)


def _table(text: str, where: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where each row stands, and its cells of the wanted columns."""
    reader = csv.reader(text.splitlines())
    header = _plain(next(reader))
    places = {name: header.index(name) for name in columns}
    for cells in reader:
        if not cells:
            continue
        place = f"{where}, line {reader.line_num}"
        if len(cells) != len(header):
            raise InvalidTrace(f"{place}: {len(cells)} columns where the header has {len(header)}; is the file truncated?")
        yield place, {name: cells[index].strip() for name, index in places.items()}


def _plain(header: Sequence[str]) -> list[str]:
    return [name.strip().strip("\ufeff").lower() for name in header]


def _seconds(value: object, name: str, place: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not (math.isfinite(number) and number >= 0):
        found = "nothing" if value is None else repr(value)[:40]
        raise InvalidTrace(f"{place}: {name} must be a number, 0 or more, got {found}")
    return number


def _length(value: object, name: str, place: str) -> int:
    number = _seconds(value, name, place)
    if number < 1 or number != int(number):
        raise InvalidTrace(f"{place}: {name} must be a whole number of at least 1, got {value!r}"[:300])
    return int(number)


def _from_zero(rows: list[LengthRow], where: str) -> list[LengthRow]:
    if not rows:
        raise InvalidTrace(f"{where}: holds no requests")
    if any(later.at < sooner.at for sooner, later in pairwise(rows)):
        rows = sorted(rows, key=lambda row: row.at)
    return [replace(row, at=row.at - rows[0].at) for row in rows]
