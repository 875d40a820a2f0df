"""Experiments: policies at the points of a sweep, and the search for their capacity. Written once for the engine, a URL and the
simulator, which differ in the runner alone.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from adaserve.bench.capacity import capacity
from adaserve.bench.demo_terminal import Terminal, bar
from adaserve.bench.fan import TaskFailed, fan
from adaserve.bench.replay import Progress, ReplayFailed
from adaserve.bench.runs import Point, Run, Runner
from adaserve.bench.source import WorkloadSource
from adaserve.clock import Clock
from adaserve.errors import AdaServeError

GOALS = (0.95, 0.99)


@dataclass(frozen=True)
class Capacity:
    """What a search for capacity brought: speeds by goal and policy (None: not even the lowest will do), and every probe."""

    speeds: dict[float, dict[str, float | None]]
    probes: tuple[Run, ...]


class Runs(Protocol):
    """Where runs are kept, and the baseline that their relative targets refer to: a RunStore."""

    baseline: float

    def find(self, policy: str, point: Point) -> Run | None:
        """The finished run of a policy at a point."""
        ...

    def add(self, run: Run) -> None:
        """Keep a run."""
        ...


class Experiment:
    """Runs policies at points, each once: what the store has is not repeated, what is new goes there as soon as it ends.

    The store's baseline is what relative targets refer to, and what the runner was made with. stop: whether somebody wants it to
    end; asked between runs here, between steps by the runner. clock: real time, for the progress line. jobs: how many processes
    share the runs; more than one only where runs do not disturb one another, and with a runner that a fork may carry on.
    After a breakdown (`failure`) or a stop nothing more is run, and what there is can be reported.
    """

    def __init__(
        self,
        *,
        source: WorkloadSource,
        runner: Runner,
        store: Runs,
        terminal: Terminal,
        clock: Clock,
        stop: Callable[[], bool],
        commit: str | None,
        jobs: int = 1,
    ) -> None:
        self._source = source
        self._runner = runner
        self._store = store
        self._terminal = terminal
        self._clock = clock
        self._stop = stop
        self._commit = commit
        self._jobs = jobs
        self._made: dict[tuple[str, Point], Run] = {}  # by other processes
        self.failure: BaseException | None = None

    @property
    def over(self) -> bool:
        """Whether it was stopped, or broke down."""
        return self.failure is not None or self._stop()

    def sweep(self, policies: Sequence[str], points: Sequence[Point]) -> list[Run]:
        """Every policy at every point, all policies at one point before the next one. When it is over, what there is of them."""
        wanted = [(policy, point) for point in points for policy in policies]
        self._share_out([partial(_play, policy, point) for policy, point in wanted if not self._has(policy, point)])
        return [self.run(policy, point) for policy, point in wanted if self._has(policy, point) or not self.over]

    def capacities(self, policies: Sequence[str], base: Point, goals: Sequence[float] = GOALS) -> Capacity:
        """Search each policy's capacity over the speed, the rest as at `base`. Ends early when it is over."""
        self._share_out([partial(_search, policy, base, goals) for policy in policies])
        probes: list[Run] = []
        speeds: dict[float, dict[str, float | None]] = {goal: {} for goal in goals}
        for policy in policies:

            def attainment_at(speed: float, policy: str = policy) -> float | None:
                point = replace(base, speed=speed)
                if self.over and (policy, point) not in self._made:
                    return None
                run = self.run(policy, point)
                probes.append(run)
                return run.report.slo_attainment if run.complete else None

            for goal, speed in capacity(attainment_at, goals, base.speed).items():
                speeds[goal][policy] = speed
        return Capacity(speeds, tuple(probes))

    def _has(self, policy: str, point: Point) -> bool:
        return (policy, point) in self._made or self._store.find(policy, point) is not None

    def _share_out(self, parts: "Sequence[Part]") -> None:
        """Let `jobs` processes make the runs of these parts ahead of time; nothing with one job."""
        if self._jobs == 1 or len(parts) < 2 or self.over:
            return
        try:
            for run in fan([partial(self._apart, part) for part in parts], self._jobs, self._stop):
                self._keep(run)
                self._made[run.policy, run.point] = run
        except TaskFailed as failed:
            self.failure = failed
            self._terminal.say(f"broke down: {reason(failed)}")

    def _apart(self, part: "Part", send: Callable[[Run], None]) -> None:
        """A part in a process of its own: what it runs is sent instead of kept."""
        mine = Experiment(
            source=self._source,
            runner=self._runner,
            store=_Sending(self._store, send),
            terminal=Terminal(io.StringIO()),
            clock=self._clock,
            stop=self._stop,
            commit=self._commit,
        )
        part(mine)
        if mine.failure is not None:
            raise mine.failure

    def _keep(self, run: Run) -> None:
        self._store.add(run)
        self._terminal.say(f"{describe(run.policy, run.point)}: {brief(run)}")

    def run(self, policy: str, point: Point) -> Run:
        """One policy at one point: from the store, or played now. Raises InvalidConfig for a workload that makes no sense."""
        label = describe(policy, point)
        if (policy, point) in self._made:
            return self._made[policy, point]
        found = self._store.find(policy, point)
        if found is not None:
            self._terminal.say(f"{label}: {brief(found)} (from an earlier start)")
            return found
        workload = self._source.at(point, self._store.baseline)
        last = workload.arrivals[-1].at

        def show(progress: Progress) -> None:
            attained = f"   attained {progress.attained / progress.judged:.0%}" if progress.judged else ""
            done = bar(min(progress.seconds / last, 1) if last > 0 else 1)
            counts = f"{progress.ended} of {len(workload)} ended, {progress.running} running"
            self._terminal.progress(f"{label}  {done}  {progress.seconds:.0f} s, {counts}{attained}", self._clock.now())

        try:
            played = self._runner(policy, workload, show)
        except ReplayFailed as failed:
            played, self.failure = failed.played, failed.__cause__
        run = Run.of(policy, point, workload, played, self._commit)
        self._keep(run)
        if self.failure is not None:
            self._terminal.say(f"{label}: broke down: {reason(self.failure)}")
        return run


Part = Callable[[Experiment], object]
"""What one process of several makes of an experiment."""


def _play(policy: str, point: Point, experiment: Experiment) -> None:
    experiment.run(policy, point)


def _search(policy: str, base: Point, goals: Sequence[float], experiment: Experiment) -> None:
    experiment.capacities([policy], base, goals)


class _Sending:
    """Runs in a process of its own: what the parent had, and what this one made, which is sent there."""

    def __init__(self, known: Runs, send: Callable[[Run], None]) -> None:
        self.baseline = known.baseline
        self._known = known
        self._send = send
        self._new: dict[tuple[str, Point], Run] = {}

    def find(self, policy: str, point: Point) -> Run | None:
        run = self._new.get((policy, point))
        return run if run is not None and run.complete else self._known.find(policy, point)

    def add(self, run: Run) -> None:
        self._new[run.policy, run.point] = run
        self._send(run)


def describe(policy: str, point: Point) -> str:
    """A run's name for people."""
    words = [policy, f"speed {point.speed:g}"]
    words += [f"urgent {point.urgent:.0%}"] if point.urgent is not None else []
    words += [f"SLO scale {point.slo_scale:g}"] if point.slo_scale != 1 else []
    words += [f"seed {point.seed}"] if point.seed != 0 else []
    return ", ".join(words)


def brief(run: Run) -> str:
    """A run's outcome in a line."""
    report = run.report
    attained = "no targets" if report.slo_attainment is None else f"{report.slo_attainment:.1%} attained"
    cut = "" if run.complete else f"; cut short after {run.seconds:.0f} s"
    return (
        f"{report.requests} requests at {run.offered:.2f}/s, {attained}, goodput {report.goodput_tokens_per_s:.0f} tokens/s{cut}"
    )


def reason(failure: BaseException) -> str:
    """Why something broke down, in a line."""
    words = " ".join(str(failure).split())[:300]
    return words if isinstance(failure, AdaServeError) else f"{type(failure).__name__}: {words}"
