"""Runs: what was measured, where on the sweep's axes, and a file that keeps it so that an interrupted sweep can go on."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from adaserve.bench.replay import Progress, Replay
from adaserve.errors import InvalidConfig
from adaserve.metrics import PolicyReport, RequestResult, StepTotals, summarize
from adaserve.request import FinishReason, Targets
from adaserve.workload import Workload

Runner = Callable[[str, Workload, Callable[[Progress], None]], Replay]
"""Plays a workload under a policy: on the built-in engine, against a URL, or on a simulated machine. Replay.stopped says that it
was cut short. The workload's relative targets refer to the baseline that the runner was made with."""


@dataclass(frozen=True)
class Point:
    """Where a run stands on the sweep's axes.

    speed: load as a multiple of the trace's own rate. urgent: share of the urgent class, None for the trace's own.
    slo_scale: multiple on the urgent class's TPOT target. seed: of whatever is drawn (classes, made-up prompts, arrivals).
    """

    speed: float = 1.0
    urgent: float | None = None
    slo_scale: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """One policy at one point.

    offered: requests per second that arrived, on average. mean_running: requests that ran at once, on average.
    seconds: how long it took. complete: False when it was cut short. commit: of the code, if known.
    """

    policy: str
    point: Point
    results: tuple[RequestResult, ...]
    refused: tuple[RequestResult, ...]
    totals: StepTotals | None
    offered: float
    mean_running: float
    seconds: float
    complete: bool
    commit: str | None = None

    @classmethod
    def of(cls, policy: str, point: Point, workload: Workload, played: Replay, commit: str | None = None) -> "Run":
        """The run that a replay of a workload was."""
        last = workload.arrivals[-1].at if workload.arrivals else 0.0
        return cls(
            policy,
            point,
            played.results,
            played.refused,
            played.totals,
            offered=len(workload) / last if last > 0 else float(len(workload)),
            mean_running=played.mean_running,
            seconds=played.seconds,
            complete=not played.stopped,
            commit=commit,
        )

    @cached_property
    def report(self) -> PolicyReport:
        """The run's entry in report.json."""
        return summarize(self.policy, self.results, self.refused, self.totals)

    @property
    def everyone(self) -> tuple[RequestResult, ...]:
        """Every request that arrived, refused ones included."""
        return self.results + self.refused

    def to_json(self) -> dict[str, Any]:
        """The run as a JSON object; requests as rows of a table."""
        return {
            **{name: getattr(self, name) for name in ("policy", "offered", "mean_running", "seconds", "complete", "commit")},
            "point": asdict(self.point),
            "totals": None if self.totals is None else vars(self.totals),
            "columns": COLUMNS,
            "results": [_row(result) for result in self.results],
            "refused": [_row(result) for result in self.refused],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Run":
        """The run that `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        if tuple(data["columns"]) != COLUMNS:
            raise ValueError("its requests have other columns")
        return cls(
            policy=data["policy"],
            point=Point(**data["point"]),
            results=tuple(_result(row) for row in data["results"]),
            refused=tuple(_result(row) for row in data["refused"]),
            totals=None if data["totals"] is None else _totals(data["totals"]),
            offered=data["offered"],
            mean_running=data["mean_running"],
            seconds=data["seconds"],
            complete=data["complete"],
            commit=data["commit"],
        )


_FLAT = tuple(item.name for item in fields(RequestResult) if item.name not in ("targets", "finish"))
COLUMNS = (*_FLAT, "tpot_target", "ttft_target", "finish")


def _row(result: RequestResult) -> list[Any]:
    finish = None if result.finish is None else result.finish.value
    return [*(getattr(result, name) for name in _FLAT), result.targets.tpot, result.targets.ttft, finish]


def _result(row: Sequence[Any]) -> RequestResult:
    *flat, tpot, ttft, finish = row
    return RequestResult(
        **dict(zip(_FLAT, flat, strict=True)),
        targets=Targets(tpot, ttft),
        finish=None if finish is None else FinishReason(finish),
    )


def _totals(data: dict[str, Any]) -> StepTotals:
    by_depth = {
        name: Counter({int(depth): count for depth, count in data[name].items()}) for name in ("drafted", "reached", "accepted")
    }
    return StepTotals(**{**data, **by_depth, "selected": Counter(data["selected"])})


class RunStore:
    """Runs kept in memory and, given a folder, in its `runs.jsonl`, one line a run as it ends.

    conditions: everything beside policy and point that a run depends on. A finished run is found again only under the same
    conditions; lines of other conditions stay in the file and are left alone. A line that a crash cut off is skipped.
    baseline: seconds per token that targets refer to: that of the runs found, for one measured anew is never quite the same.
    """

    FILE = "runs.jsonl"

    def __init__(self, folder: Path | None, conditions: dict[str, Any], baseline: float) -> None:
        self._conditions = json.loads(json.dumps(conditions))
        self._path = None if folder is None else folder / self.FILE
        self._runs: dict[tuple[str, Point], Run] = {}
        self.baseline = baseline
        if self._path is not None and self._path.exists():
            for data in _lines(self._path):
                if data.get("conditions") == self._conditions:
                    run = Run.from_json(data["run"])
                    self._runs[run.policy, run.point] = run
                    self.baseline = data["baseline"]

    def find(self, policy: str, point: Point) -> Run | None:
        """The finished run of a policy at a point; None when there is none yet, or it was cut short."""
        run = self._runs.get((policy, point))
        return run if run is not None and run.complete else None

    def add(self, run: Run) -> None:
        """Keep a run, in the file first. Raises InvalidConfig when that cannot be written."""
        if self._path is not None:
            line = json.dumps({"conditions": self._conditions, "baseline": self.baseline, "run": run.to_json()}) + "\n"
            try:
                with self._path.open("a+b") as file:
                    if file.tell() > 0 and not _ends_line(file):  # what a crash cut off
                        file.write(b"\n")
                    file.write(line.encode())
            except OSError as error:
                raise InvalidConfig(f"cannot write {self._path}: {error.strerror or error}") from error
        self._runs[run.policy, run.point] = run

    @property
    def runs(self) -> list[Run]:
        """All runs under these conditions, those that were cut short too, oldest first."""
        return list(self._runs.values())


def read_runs(folder: Path) -> list[Run]:
    """Every run in a folder, under whatever conditions, the latest of each policy and point. Raises InvalidConfig without any."""
    path = folder / RunStore.FILE
    if not path.is_file():
        raise InvalidConfig(f"there are no runs in {folder}: {RunStore.FILE} is not there")
    runs = (Run.from_json(data["run"]) for data in _lines(path))
    return list({(run.policy, run.point): run for run in runs}.values())


def _ends_line(file: Any) -> bool:
    file.seek(-1, 2)
    return bool(file.read(1) == b"\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    """The file's objects that are whole and that this version can read."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            data = json.loads(line)
            Run.from_json(data["run"])
        except (ValueError, KeyError, TypeError):
            continue
        found.append(data)
    return found
