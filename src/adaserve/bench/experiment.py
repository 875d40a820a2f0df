"""Experiments: policies at the points of a sweep, and the search for their capacity. Written once for the engine, a URL and the
simulator, which differ in the runner alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from adaserve.bench.capacity import capacity
from adaserve.bench.demo_terminal import Terminal, bar
from adaserve.bench.replay import Progress, ReplayFailed
from adaserve.bench.runs import Point, Run, Runner, RunStore
from adaserve.bench.workloads import Source
from adaserve.clock import Clock
from adaserve.errors import AdaServeError

GOALS = (0.95, 0.99)


@dataclass(frozen=True)
class Capacity:
    """What a search for capacity brought: speeds by goal and policy (None: not even the lowest will do), and every probe."""

    speeds: dict[float, dict[str, float | None]]
    probes: tuple[Run, ...]


class Experiment:
    """Runs policies at points, each once: what the store has is not repeated, what is new goes there as soon as it ends.

    The store's baseline is what relative targets refer to, and what the runner was made with. stop: whether somebody wants it to
    end; asked between runs here, between steps by the runner. clock: real time, for the progress line.
    After a breakdown (`failure`) or a stop nothing more is run, and what there is can be reported.
    """

    def __init__(
        self,
        *,
        source: Source,
        runner: Runner,
        store: RunStore,
        terminal: Terminal,
        clock: Clock,
        stop: Callable[[], bool],
        commit: str | None,
    ) -> None:
        self._source = source
        self._runner = runner
        self._store = store
        self._terminal = terminal
        self._clock = clock
        self._stop = stop
        self._commit = commit
        self.failure: BaseException | None = None

    @property
    def over(self) -> bool:
        """Whether it was stopped, or broke down."""
        return self.failure is not None or self._stop()

    def sweep(self, policies: Sequence[str], points: Sequence[Point]) -> list[Run]:
        """Every policy at every point, all policies at one point before the next one. Ends early when it is over."""
        runs: list[Run] = []
        for point in points:
            for policy in policies:
                if self.over:
                    return runs
                runs.append(self.run(policy, point))
        return runs

    def capacities(self, policies: Sequence[str], base: Point, goals: Sequence[float] = GOALS) -> Capacity:
        """Search each policy's capacity over the speed, the rest as at `base`. Ends early when it is over."""
        probes: list[Run] = []
        speeds: dict[float, dict[str, float | None]] = {goal: {} for goal in goals}
        for policy in policies:

            def attainment_at(speed: float, policy: str = policy) -> float | None:
                if self.over:
                    return None
                run = self.run(policy, replace(base, speed=speed))
                probes.append(run)
                return run.report.slo_attainment if run.complete else None

            for goal, speed in capacity(attainment_at, goals, base.speed).items():
                speeds[goal][policy] = speed
        return Capacity(speeds, tuple(probes))

    def run(self, policy: str, point: Point) -> Run:
        """One policy at one point: from the store, or played now. Raises InvalidConfig for a workload that makes no sense."""
        label = describe(policy, point)
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
        self._store.add(run)
        self._terminal.say(f"{label}: {brief(run)}")
        if self.failure is not None:
            self._terminal.say(f"{label}: broke down: {reason(self.failure)}")
        return run


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
