"""Reader of the paper's trace format: a JSON list of {emission_time_ms, input_length, output_length, prompt, slo_ratio}.

slo_ratio > 0 is a TPOT target as a multiple of the baseline latency; slo_ratio < 0 is minus a target in milliseconds. That sign
ends here: inside there are SLOs. Outputs run to output_length tokens whatever the model says.
"""

import json
import math
from pathlib import Path

from adaserve.errors import InvalidTrace
from adaserve.request import SLO
from adaserve.workload.workload import Arrival, Workload

CLASS_OF_RATIO = {1.2: "coding", -50.0: "chat", -150.0: "summarization"}
"""The paper's three classes. Other targets get a class of their own, named after the target."""


def read_trace(path: str | Path) -> Workload:
    """Read a trace file, in order of emission. Raises InvalidTrace with the entry's index and the reason."""
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidTrace(f"cannot read trace {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidTrace(f"trace {path} is not JSON: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise InvalidTrace(f"trace {path} must be a non-empty JSON list of requests")
    arrivals = [_arrival(entry, f"trace {path}, entry {index}") for index, entry in enumerate(entries)]
    return Workload(tuple(sorted(arrivals, key=lambda arrival: arrival.at)))


def class_of(slo_ratio: float) -> str:
    """Name of the class of a trace entry: one of the paper's, or one made of the target."""
    known = CLASS_OF_RATIO.get(slo_ratio)
    if known is not None:
        return known
    return f"{slo_ratio:g}x" if slo_ratio > 0 else f"{-slo_ratio:g}ms"


def _arrival(entry: object, where: str) -> Arrival:
    if not isinstance(entry, dict):
        raise InvalidTrace(f"{where}: must be an object, got {type(entry).__name__}")
    emission = _number(entry, "emission_time_ms", where)
    if emission < 0:
        raise InvalidTrace(f"{where}: emission_time_ms must not be negative, got {emission:g}")
    length = _number(entry, "output_length", where)
    if length < 1 or length != int(length):
        raise InvalidTrace(f"{where}: output_length must be a whole number of at least 1, got {length:g}")
    prompt = entry.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise InvalidTrace(f"{where}: prompt must be a non-empty string")
    ratio = _number(entry, "slo_ratio", where)
    if ratio == 0:
        raise InvalidTrace(f"{where}: slo_ratio must be a multiple of the baseline (> 0) or minus milliseconds (< 0), got 0")
    return Arrival(
        at=emission / 1e3,
        prompt=prompt,
        class_name=class_of(ratio),
        slo=SLO(tpot_multiple=ratio) if ratio > 0 else SLO(tpot_ms=-ratio),
        max_tokens=int(length),
        ignore_eos=True,
    )


def _number(entry: dict[str, object], name: str, where: str) -> float:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        found = "nothing" if name not in entry else repr(value)
        raise InvalidTrace(f"{where}: {name} must be a number, got {found}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidTrace(f"{where}: {name} must be finite, got {number}")
    return number
