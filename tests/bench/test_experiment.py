"""Sweeps and searches, driven with a machine whose capacity is known."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from adaserve.bench.demo_terminal import Terminal
from adaserve.bench.experiment import Experiment
from adaserve.bench.replay import Progress, Replay, ReplayFailed
from adaserve.bench.runs import Point, Runner, RunStore
from adaserve.bench.source import WorkloadSource
from adaserve.clock import VirtualClock
from adaserve.workload import Arrival, Workload
from tests.bench.made import BASELINE, load_runner, result

TRACE = Workload(tuple(Arrival(float(n), "x", "coding", None, 1) for n in range(1, 201)))  # one a second
MACHINES = load_runner({"fast": 2.0, "slow": 0.5})


class Bench:
    """An experiment and what it said; `played` counts the runs that were really made."""

    def __init__(
        self, folder: Path | None, runner: Runner = MACHINES, stop: Callable[[], bool] = lambda: False, jobs: int = 1
    ) -> None:
        self.words = io.StringIO()
        self.played: list[str] = []

        def counting(policy: str, workload: Workload, on_progress: Callable[[Progress], None]) -> Replay:
            self.played.append(policy)
            return runner(policy, workload, on_progress)

        self.experiment = Experiment(
            source=WorkloadSource(lambda seed, seconds: TRACE.until(seconds)),
            runner=counting,
            store=RunStore(folder, {}, BASELINE),
            terminal=Terminal(self.words),
            clock=VirtualClock(),
            stop=stop,
            commit="abc",
            jobs=jobs,
        )


def test_all_policies_at_one_point_come_before_the_next_point(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    runs = bench.experiment.sweep(["fast", "slow"], [Point(0.5), Point(1.0)])
    assert [(r.policy, r.point.speed) for r in runs] == [("fast", 0.5), ("slow", 0.5), ("fast", 1.0), ("slow", 1.0)]
    assert [r.report.slo_attainment for r in runs] == pytest.approx([1.0, 1.0, 1.0, 0.5])
    assert [r.offered for r in runs] == pytest.approx([0.5, 0.5, 1.0, 1.0])
    assert all(r.commit == "abc" for r in runs)
    assert "slow, speed 1: 200 requests at 1.00/s, 50.0% attained" in bench.words.getvalue()


def test_what_has_been_run_is_not_run_again(tmp_path: Path) -> None:
    first = Bench(tmp_path).experiment.sweep(["fast"], [Point(0.5)])
    again = Bench(tmp_path)
    assert again.experiment.sweep(["fast", "slow"], [Point(0.5)])[:1] == first
    assert again.played == ["slow"]
    assert "from an earlier start" in again.words.getvalue()


def test_capacities_are_the_machines(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    found = bench.experiment.capacities(["fast", "slow"], Point())
    for goal in (0.95, 0.99):
        for policy, rate in (("fast", 2.0), ("slow", 0.5)):
            assert found.speeds[goal][policy] == pytest.approx(rate / goal, rel=0.06)
    assert len(found.probes) == len(bench.played)
    again = Bench(tmp_path)
    assert again.experiment.capacities(["fast", "slow"], Point()) == found
    assert again.played == []


def test_a_breakdown_keeps_what_was_measured_and_ends_it_all(tmp_path: Path) -> None:
    def breaks(policy: str, workload: Workload, on_progress: Callable[[Progress], None]) -> Replay:
        if policy == "fast":
            return MACHINES(policy, workload, on_progress)
        raise ReplayFailed(Replay((result("0", 0.02),), None, 1.0, 5.0, stopped=True)) from RuntimeError("out of\nmemory")

    bench = Bench(tmp_path, breaks)
    runs = bench.experiment.sweep(["fast", "slow"], [Point(), Point(2.0)])
    assert [(r.policy, r.complete, len(r.results)) for r in runs] == [("fast", True, 200), ("slow", False, 1)]
    assert isinstance(bench.experiment.failure, RuntimeError)
    assert "slow, speed 1: broke down: RuntimeError: out of memory" in bench.words.getvalue()
    assert bench.experiment.capacities(["fast"], Point()).probes == ()
    healed = Bench(tmp_path)
    assert len(healed.experiment.sweep(["fast", "slow"], [Point(), Point(2.0)])) == 4
    assert healed.played == ["slow", "fast", "slow"]


def test_stopping_ends_it_between_runs(tmp_path: Path) -> None:
    bench = Bench(tmp_path, stop=lambda: len(bench.played) == 2)
    assert len(bench.experiment.sweep(["fast", "slow"], [Point(), Point(2.0)])) == 2


def test_a_probe_cut_short_settles_nothing(tmp_path: Path) -> None:
    def cut(policy: str, workload: Workload, on_progress: Callable[[Progress], None]) -> Replay:
        return Replay((result("0", 0.02),), None, 1.0, 5.0, stopped=True)

    found = Bench(tmp_path, cut).experiment.capacities(["fast"], Point())
    assert found.speeds == {0.95: {}, 0.99: {}}
    assert [run.complete for run in found.probes] == [False]


def test_with_several_processes_sweeps_and_searches_bring_the_same(tmp_path: Path) -> None:
    points = [Point(0.5), Point(1.0), Point(2.0)]
    for name in "ab":
        (tmp_path / name).mkdir()
    alone, shared = Bench(tmp_path / "a"), Bench(tmp_path / "b", jobs=2)
    assert shared.experiment.sweep(["fast", "slow"], points) == alone.experiment.sweep(["fast", "slow"], points)
    assert shared.experiment.capacities(["fast", "slow"], Point()) == alone.experiment.capacities(["fast", "slow"], Point())
    assert alone.played and not shared.played
    again = Bench(tmp_path / "b", jobs=2)
    assert len(again.experiment.sweep(["fast", "slow"], points)) == 6
    assert "from an earlier start" in again.words.getvalue()


def test_a_breakdown_in_another_process_keeps_what_was_measured_and_ends_it_all(tmp_path: Path) -> None:
    def breaks(policy: str, workload: Workload, on_progress: Callable[[Progress], None]) -> Replay:
        if policy == "fast":
            return MACHINES(policy, workload, on_progress)
        raise ReplayFailed(Replay((result("0", 0.02),), None, 1.0, 5.0, stopped=True)) from RuntimeError("out of memory")

    bench = Bench(tmp_path, breaks, jobs=2)
    runs = bench.experiment.sweep(["fast", "slow"], [Point(0.5)])
    assert ("slow", False) in [(run.policy, run.complete) for run in runs]
    assert "RuntimeError: out of memory" in str(bench.experiment.failure)
    assert bench.experiment.capacities(["fast"], Point(3.0)).probes == ()


def test_a_stop_in_the_middle_keeps_what_other_processes_had_done(tmp_path: Path) -> None:
    bench = Bench(tmp_path, jobs=2, stop=lambda: "fast, speed 1:" in bench.words.getvalue())
    runs = bench.experiment.sweep(["fast"], [Point(1.0), *(Point(1.0 + k / 8) for k in range(1, 9))])
    assert Point(1.0) in [run.point for run in runs] and len(runs) < 9
    assert {run.point for run in RunStore(tmp_path, {}, BASELINE).runs} >= {run.point for run in runs}
