"""The project's own trace format: JSON lines, one request each, in any order.

    {"at": 1.5, "class": "coding", "prompt": "def add(", "max_tokens": 64, "slo": {"tpot_multiple": 1.2}, "ignore_eos": true}

at: seconds after the start. slo: tpot_ms, tpot_multiple, ttft_ms, all optional; without it there is no target. Optional too:
class ("default"), chat (true: the prompt goes through the chat template), ignore_eos (false), input_length (its tokens).
"""

import json
import math
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from adaserve.errors import InvalidRequest, InvalidTrace
from adaserve.request import SLO
from adaserve.workload.workload import Arrival, Workload

NO_CLASS = "default"
KNOWN = {"at", "class", "prompt", "max_tokens", "slo", "chat", "ignore_eos", "input_length"}


def is_ours(first: object) -> bool:
    """Whether the first object of a file of JSON lines is a request of this format."""
    return isinstance(first, dict) and "at" in first and "prompt" in first


def write_jsonl(workload: Workload) -> str:
    """The workload as text of this format. Made-up prompts become plain ones, of about their length."""
    return "".join(json.dumps(_entry(arrival), ensure_ascii=False) + "\n" for arrival in workload.arrivals)


def read_jsonl(lines: Iterable[str], where: str) -> Workload:
    """Read a workload; `where` names the file in errors. Raises InvalidTrace with the line's number and the reason."""
    arrivals = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            arrivals.append(_arrival(line, f"{where}, line {number}"))
    if not arrivals:
        raise InvalidTrace(f"{where}: holds no requests")
    return Workload(tuple(sorted(arrivals, key=lambda arrival: arrival.at)))


def _entry(arrival: Arrival) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "at": arrival.at,
        "class": arrival.class_name,
        "prompt": arrival.prompt,
        "max_tokens": arrival.max_tokens,
    }
    if arrival.slo is not None:
        entry["slo"] = {item.name: value for item in fields(SLO) if (value := getattr(arrival.slo, item.name)) is not None}
    entry |= {name: True for name in ("chat", "ignore_eos") if getattr(arrival, name)}
    if arrival.input_length is not None:
        entry["input_length"] = arrival.input_length
    return entry


def _arrival(line: str, place: str) -> Arrival:
    def wrong(reason: str) -> InvalidTrace:
        return InvalidTrace(f"{place}: {reason}")

    def whole(name: str, default: int | None = None) -> int | None:
        value = entry.get(name, default)
        if value is not None and (type(value) is not int or not 1 <= value < 2**31):
            raise wrong(f"{name} must be a whole number of at least 1, got {value!r}"[:200])
        return value

    def flag(name: str) -> bool:
        value = entry.get(name, False)
        if not isinstance(value, bool):
            raise wrong(f"{name} must be true or false, got {value!r}"[:200])
        return value

    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise wrong(f"is not JSON, is the file truncated? {error}") from None
    if not isinstance(entry, dict):
        raise wrong(f"must be an object, got {type(entry).__name__}")
    if unknown := entry.keys() - KNOWN:
        raise wrong(f"unknown field {sorted(unknown)[0]!r}; known are {', '.join(sorted(KNOWN))}"[:300])
    at, prompt, name = entry.get("at"), entry.get("prompt"), entry.get("class", NO_CLASS)
    if isinstance(at, bool) or not isinstance(at, int | float) or not (0 <= at < math.inf):
        raise wrong(f"at must be seconds, 0 or more, got {at!r}"[:200])
    if not isinstance(prompt, str) or not prompt:
        raise wrong("prompt must be a non-empty string")
    if not isinstance(name, str) or not name:
        raise wrong(f"class must be a non-empty string, got {name!r}"[:200])
    length = whole("max_tokens")
    if length is None:
        raise wrong("max_tokens must be a whole number of at least 1, got nothing")
    slo = entry.get("slo")
    try:
        targets = None if slo is None else SLO(**slo)
    except (TypeError, InvalidRequest) as error:
        names = ", ".join(item.name for item in fields(SLO))
        reason = error if isinstance(error, InvalidRequest) else f"slo must be an object of numbers, with any of {names}"
        raise wrong(str(reason)[:300]) from None
    return Arrival(float(at), prompt, name, targets, length, flag("chat"), flag("ignore_eos"), whole("input_length"))
