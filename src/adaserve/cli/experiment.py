"""What `bench` and `simulate` share: sweep and search as the options say, keep every run, report."""

import argparse
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaserve.bench.about import commit
from adaserve.bench.demo_terminal import Terminal
from adaserve.bench.experiment import Capacity, Experiment, reason
from adaserve.bench.report import write_report
from adaserve.bench.runs import Run, Runner, RunStore, read_runs
from adaserve.bench.source import WorkloadSource
from adaserve.bench.workloads import base_point, points_from
from adaserve.clock import WallClock, unix_time
from adaserve.errors import InvalidConfig

STOPPED = 130
"""Exit status after Ctrl-C, as shells have it."""


@dataclass(frozen=True)
class Subject:
    """What is measured.

    baseline: in s/token, as measured or stated. runner: makes the Runner, given the baseline that relative targets refer to.
    policies: to run. device: in words. conditions: all that results depend on beside trace, policy and point; they go into the
    report's config, and a run in --out is not repeated if it was made under equal ones.
    """

    baseline: float
    runner: Callable[[float], Runner]
    policies: list[str]
    device: str
    conditions: dict[str, Any]


def add_experiment_options(group: "argparse._ArgumentGroup") -> None:
    """Add what `bench` and `simulate` share beside the workload."""
    group.add_argument(
        "--capacity", action="store_true", help="search the highest speed at which 95%% and 99%% of requests attain, per policy"
    )
    group.add_argument("--out", metavar="DIR", help="folder of results and report (default: a new one here)")
    group.add_argument(
        "--beside", action="append", default=[], metavar="DIR", help="show the runs of another --out folder too; repeatable"
    )


def conduct(args: argparse.Namespace, source: WorkloadSource, subject: Subject, stop: "Stop", jobs: int = 1) -> int:
    """Run points and searches as the options say, write the report, print it as one line; returns the exit status.

    jobs: processes that share the runs, where these do not disturb one another.
    The baseline of earlier runs in --out goes before the one measured now, so that all have the same targets.
    """
    terminal = Terminal(sys.stderr)
    others = [run for folder in args.beside for run in read_runs(Path(folder))]
    out = Path(args.out) if args.out else Path(f"adaserve-{Path(args.trace).stem}-{unix_time()}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfig(f"cannot make the folder {out}: {error.strerror or error}") from None
    store = RunStore(out, source.facts | subject.conditions, subject.baseline)
    terminal.say(f"baseline: {store.baseline * 1e3:.2f} ms per token")
    revision = commit()
    experiment = Experiment(
        source=source,
        runner=subject.runner(store.baseline),
        store=store,
        terminal=terminal,
        clock=WallClock(),
        stop=stop,
        commit=revision,
        jobs=jobs,
    )
    runs: list[Run] = []
    found: Capacity | None = None
    with stop:
        runs += experiment.sweep(subject.policies, points_from(args))
        if args.capacity:
            found = experiment.capacities(subject.policies, base_point(args))
    config = source.facts | subject.conditions | {"baseline_ms": store.baseline * 1e3, "commit": revision}
    report = write_report(out, config, subject.device, [*runs, *others], found)
    terminal.say(f"{'stopped early; ' if stop() else ''}report: {out / 'report.md'}")
    print(json.dumps(report), flush=True)
    if experiment.failure is not None:
        terminal.say(f"broke down: {reason(experiment.failure)}")
        return 1
    return STOPPED if stop() else 0


class Stop:
    """Notes the first Ctrl-C or SIGTERM while it is entered, so that what was measured by then is kept; a second one kills."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._wanted = False
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        return self._wanted

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self._wanted = True
        self.__exit__()
