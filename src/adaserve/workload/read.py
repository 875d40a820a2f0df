"""Reads a trace of any known format; which one it is shows in its content, not in its name."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from adaserve.errors import InvalidTrace
from adaserve.workload import public
from adaserve.workload.classes import Mix
from adaserve.workload.jsonl import is_ours, read_jsonl
from adaserve.workload.lengths import LengthRow, fill
from adaserve.workload.trace import parse_trace
from adaserve.workload.workload import Workload

FORMATS = "the paper's JSON list, our JSON lines, Mooncake's JSON lines, an Azure LLM table, a BurstGPT table"


@dataclass(frozen=True)
class Trace:
    """A trace as its file has it.

    format: which one it is, in words. digest: of the file's bytes.
    workload: its requests, for formats with texts; rows: lengths, for formats without.
    """

    format: str
    digest: str
    workload: Workload | None = None
    rows: Sequence[LengthRow] = field(default=(), repr=False)

    def requests(self, mix: Mix, seed: int, seconds: float) -> Workload:
        """The requests of its first `seconds`; classes by the mix, and made-up prompts, where the trace has none."""
        if self.workload is not None:
            return self.workload.until(seconds)
        return fill([row for row in self.rows if row.at < seconds], mix, seed)

    @property
    def times(self) -> list[float]:
        """Times of arrival, in seconds after the start."""
        return [item.at for item in (self.rows if self.workload is None else self.workload.arrivals)]


def read(path: str | Path) -> Trace:
    """Read a trace file. Raises InvalidTrace with the line's number and the reason."""
    where = f"trace {path}"
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidTrace(f"cannot read {where}: {error.strerror or error}") from None
    digest = sha256(data).hexdigest()[:16]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidTrace(f"{where}, line {data[: error.start].count(10) + 1}: is not UTF-8 text ({error.reason})") from None
    first = next((line for line in text.split("\n") if line.strip()), "").strip()
    if not first:
        raise InvalidTrace(f"{where} is empty")
    if first.startswith("["):
        return Trace("the paper's", digest, parse_trace(text, where))
    if first.startswith("{"):
        return _json_lines(text, first, where, digest)
    header = next(csv.reader([first]))
    tables: list[tuple[str, Callable[[Sequence[str]], bool], Callable[[str, str], list[LengthRow]]]] = [
        ("Azure", public.is_azure, public.read_azure),
        ("BurstGPT", public.is_burstgpt, public.read_burstgpt),
    ]
    for name, is_it, reader in tables:
        if is_it(header):
            return Trace(name, digest, rows=reader(text, where))
    raise InvalidTrace(f"{where}, line 1: of no known format, which are {FORMATS}; it begins {first[:40]!r}")


def _json_lines(text: str, first: str, where: str, digest: str) -> Trace:
    try:
        head = json.loads(first)
    except (ValueError, RecursionError) as error:
        raise InvalidTrace(f"{where}, line 1: is not JSON, is the file truncated? {error}") from None
    if is_ours(head):
        return Trace("JSON lines", digest, read_jsonl(text.split("\n"), where))
    if public.is_mooncake(head):
        return Trace("Mooncake", digest, rows=public.read_mooncake(text, where))
    fields = f"the fields {', '.join(head)}" if head else "no fields"
    raise InvalidTrace(f"{where}, line 1: of no known format, which are {FORMATS}; it has {fields}"[:400])
