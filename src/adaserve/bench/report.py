"""The report of an experiment: report.json for programs, report.md with plots for people."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adaserve.bench.experiment import Capacity, describe
from adaserve.bench.report_text import Reading, page
from adaserve.bench.runs import Run
from adaserve.errors import InvalidConfig

NO_PLOTS = "No plots: matplotlib is not installed (pip install 'adaserve[plots]')."


def write_report(
    out: Path, config: dict[str, Any], device: str, runs: Sequence[Run], capacity: Capacity | None = None
) -> dict[str, Any]:
    """Write report.json and report.md, with plots beside it if matplotlib is there, to a folder; returns report.json's object.

    config: how it was measured; where each run stands is added to it. Raises InvalidConfig when the folder cannot be written.
    """
    report = as_object(config, device, runs, capacity)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        reading = Reading(report["config"], device, tuple(runs), capacity)
        (out / "report.md").write_text(page(reading, _plots(out, reading), NO_PLOTS), encoding="utf-8")
    except OSError as error:
        raise InvalidConfig(f"cannot write the report to {out}: {error.strerror or error}") from error
    return report


def _plots(out: Path, reading: Reading) -> tuple[tuple[str, str], ...]:
    """Draw the plots, as far as that is possible: an optional library is needed."""
    try:
        from adaserve.bench.plots import draw
    except ImportError:
        return ()
    return draw(out, reading)


def as_object(config: dict[str, Any], device: str, runs: Sequence[Run], capacity: Capacity | None) -> dict[str, Any]:
    """report.json: its entries of `runs` and config's `points` stand in the same order."""
    points = [place(run) for run in runs]
    report: dict[str, Any] = {
        "config": {**config, "points": points},
        "device": device,
        "runs": [run.report.to_json() for run in runs],
    }
    if capacity is not None:
        probes = [place(run) | {"slo_attainment": run.report.slo_attainment} for run in capacity.probes]
        report["config"]["probes"] = probes
        report["capacity"] = {f"{goal:g}": speeds for goal, speeds in capacity.speeds.items()}
    return report


def place(run: Run) -> dict[str, Any]:
    """Where a run stands on the axes, and under what circumstances."""
    return {
        "label": describe(run.policy, run.point),
        "policy": run.policy,
        **asdict(run.point),
        "offered_requests_per_s": run.offered,
        "mean_running": run.mean_running,
        "seconds": run.seconds,
        "complete": run.complete,
        "commit": run.commit,
    }
