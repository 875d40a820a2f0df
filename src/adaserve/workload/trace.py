"""Reader of the paper's trace format: a JSON list of {emission_time_ms, input_length, output_length, prompt, slo_ratio}.

slo_ratio > 0 is a TPOT target as a multiple of the baseline latency; slo_ratio < 0 is minus a target in milliseconds. That sign
ends here: inside there are SLOs. Outputs run to output_length tokens whatever the model says.
"""

import json
import math
import re
from pathlib import Path

from adaserve.errors import InvalidRequest, InvalidTrace
from adaserve.request import SLO, SamplingParams
from adaserve.workload.workload import Arrival, Workload

_BLANK = re.compile(r"[\s,]*")

CLASS_OF_RATIO = {1.2: "coding", -50.0: "chat", -150.0: "summarization"}
"""The paper's three classes. Other targets get a class of their own, named after the target."""


def read_trace(path: str | Path) -> Workload:
    """Read a trace file, in order of emission. Raises InvalidTrace with the entry's index, its line and the reason."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidTrace(f"cannot read trace {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InvalidTrace(f"trace {path} is not JSON: {error}") from None
    return parse_trace(text, f"trace {path}")


def parse_trace(text: str, where: str) -> Workload:
    """Read a trace's text; `where` names it in errors. Raises InvalidTrace."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidTrace(f"{where} is not JSON, is the file truncated? {error}") from None
    if not isinstance(entries, list) or not entries:
        raise InvalidTrace(f"{where} must be a non-empty JSON list of requests")
    arrivals = []
    for index, entry in enumerate(entries):
        try:
            arrivals.append(_arrival(entry))
        except _Wrong as wrong:
            raise InvalidTrace(f"{where}, line {_line_of(text, index)}, entry {index}: {wrong}") from None
    return Workload(tuple(sorted(arrivals, key=lambda arrival: arrival.at)))


def _line_of(text: str, index: int) -> int:
    """The line, from 1, on which an element of a JSON list begins."""
    decoder = json.JSONDecoder()
    at = _past_blanks(text, text.index("[") + 1)
    for _ in range(index):
        at = _past_blanks(text, decoder.raw_decode(text, at)[1])
    return text.count("\n", 0, at) + 1


def _past_blanks(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return at if found is None else found.end()


def class_of(slo_ratio: float) -> str:
    """Name of the class of a trace entry: one of the paper's, or one made of the target."""
    known = CLASS_OF_RATIO.get(slo_ratio)
    if known is not None:
        return known
    return f"{slo_ratio:g}x" if slo_ratio > 0 else f"{-slo_ratio:g}ms"


class _Wrong(Exception):
    """What is wrong with an entry."""


def _arrival(entry: object) -> Arrival:
    if not isinstance(entry, dict):
        raise _Wrong(f"must be an object, got {type(entry).__name__}")
    emission = _number(entry, "emission_time_ms")
    if emission < 0:
        raise _Wrong(f"emission_time_ms must not be negative, got {emission:g}")
    length = _number(entry, "output_length")
    if length < 1 or length != int(length):
        raise _Wrong(f"output_length must be a whole number of at least 1, got {length:g}")
    prompt = entry.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise _Wrong("prompt must be a non-empty string")
    ratio = _number(entry, "slo_ratio")
    if ratio == 0:
        raise _Wrong("slo_ratio must be a multiple of the baseline (> 0) or minus milliseconds (< 0), got 0")
    try:
        slo = SLO(tpot_multiple=ratio) if ratio > 0 else SLO(tpot_ms=-ratio)
        max_tokens = SamplingParams(max_tokens=int(length)).max_tokens
    except InvalidRequest as error:
        raise _Wrong(str(error)) from None
    stated = entry.get("input_length")
    return Arrival(
        at=emission / 1e3,
        prompt=prompt,
        class_name=class_of(ratio),
        slo=slo,
        max_tokens=max_tokens,
        ignore_eos=True,
        input_length=stated if type(stated) is int and stated > 0 else None,
    )


def _number(entry: dict[str, object], name: str) -> float:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        found = "nothing" if name not in entry else repr(value)[:40]
        raise _Wrong(f"{name} must be a number, got {found}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Wrong(f"{name} must be finite, got {number}")
    return number
