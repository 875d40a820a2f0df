"""The constants of `adaserve+`: a search on some traces over several simulated machines at once, and a check on others.

    .venv/bin/python benchmarks/plus_constants.py --search mixed_rps{2.6,4.8}.json --check mixed_rps{3.4,4.2}.json

They are the same on every machine, so what is searched for must suit them all: a large model on old GPUs and on a new one, as
planned and as measured, and the demo pair on a CPU, which serves short pieces at its own targets. A case is a trace on a machine
at a share of urgent requests, under the load at which the constants as they are attain 95% at most. One axis is tried after the
other, a step down and a step up, over all cases of the search and over those of the check, at loads found in the same way. Kept
is what attains on average at least `--gain` points more on the former, and no less on the latter: so the check can refuse a
change, and is a little too kind to those that passed. Drafts are not coupled, for the recordings are not. Every trial goes to
stderr, tables to stdout; the last line is one JSON object.

`--axes` searches some axes alone. Not searched is what bounds work and changes no decision, and the form of the calibration's
table, which saved calibrations share.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from adaserve.bench.capacity import grid_index, grid_speed
from adaserve.bench.runs import Point
from adaserve.bench.source import WorkloadSource
from adaserve.executor.shipped import profile_named, recording_named
from adaserve.policy.plus.assembly import make_plus
from adaserve.policy.plus.parts import PlusConstants, PlusParts
from adaserve.request import SLO
from adaserve.simulate import Machine, constants_for, simulate, to_requests
from adaserve.workload import DEMO_MIX, read

GOAL = 0.95
SHARES = (0.2, 0.6)
AXES: Mapping[str, Sequence[float]] = {  # `learning.` stands before the names of LearningConstants
    "pace": (0.9, 0.94, 0.96, 0.98, 1.0),
    "urgency": (1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    "prompt_worth": (0.25, 0.35, 0.5, 0.7, 1.0),
    "prompt_rows": (64, 128, 192, 256, 384, 512),
    "prompt_least": (0.125, 0.25, 0.5, 0.75, 1.0),
    "patience": (2.0, 3.0, 4.0, 5.0, 7.0, 10.0),
    "chunk_part": (0.25, 0.5, 0.75, 1.0),
    "chunk_cheap": (1.0, 1.05, 1.1, 1.2, 1.4),
    "prompt_stretch": (1.0, 1.5, 2.0, 3.0, 4.0),
    "free_stretch": (2.0, 4.0, 8.0),
    "idle_prompt_rows": (256, 512, 1024),
    "catching_up": (0.0, 0.02, 0.05, 0.1, 0.2),
    "reading_margin": (1.0, 1.3, 1.7, 2.5),
    "reading_rows": (512, 1024, 2048, 4096),
    "depth_max": (2, 3, 4, 6),
    "width_max": (1, 2, 3, 4),
    "draft_rows": (16, 32, 64, 128),
    "offered_rows": (32, 64, 128),
    "read_least": (32, 64, 128),
    "read_most": (512, 2048, 8192),
    "late_turn": (4, 8, 16),  # ends here: who attains would have the late wait for ever
    "hold_until": (0.6, 0.8, 0.9),
    "hold_share": (0.02, 0.05, 0.1),
    "hold_pace": (0.88, 0.92, 0.96),
    "learning.draft_rate": (0.02, 0.05, 0.1),
    "learning.token_fade": (0.95, 0.98, 0.99),
    "learning.hope": (0.0001, 0.0005, 0.002),
    "learning.first_accepted": (0.5, 0.6, 0.7),
    "learning.next_accepted": (0.65, 0.75, 0.85),
    "learning.first_nodes": (0.7, 1.0, 1.5),
    "learning.further_worth": (0.6, 0.8, 1.0),
    "learning.trial_fade": (0.995, 0.998, 0.999),
    "learning.prior_trials": (8.0, 16.0, 32.0),
    "learning.refit_steps": (8, 16, 32),
    "learning.reading_rate": (0.05, 0.1, 0.2),
}


@dataclass(frozen=True)
class Bench:
    """A machine with what it serves. duration: seconds of a trace. lengths: multiple on prompts and outputs."""

    profile: str
    acceptance: str
    slots: int
    start: float
    duration: float
    lengths: float = 1.0
    tpot_ms: tuple[float, float, float] | None = None  # of coding, chat, summarization; None: the trace's own, scaled
    speed: float = 1.0  # where to look for the load first


BENCHES = (
    Bench("a100x4-70b", "smollm2-noise-t0", 64, 0.0, 60.0, speed=1.3),
    Bench("h200-32b", "smollm2-noise-t0", 64, 0.0, 20.0, speed=5.5),
    Bench("h200-32b-measured", "smollm2-demo-t0", 96, 0.0, 20.0, speed=5.0),
    Bench("demo-cpu-measured", "smollm2-demo-t0", 64, 60.0, 40.0, 0.25, (7.0, 11.0, 33.0), speed=1.5),
)


@dataclass(frozen=True)
class Case:
    """A trace on a machine. speed: multiple of the trace's rate."""

    bench: Bench
    trace: Path
    urgent: float
    speed: float

    def __str__(self) -> str:
        return f"{self.bench.profile}, {self.trace.stem}, {self.urgent:.0%} urgent, x {self.speed:g}"


def attained(constants: PlusConstants, case: Case) -> float:
    """Share of requests that attain."""
    torch.set_num_threads(1)
    bench = case.bench
    machine = Machine(profile_named(bench.profile), slots=bench.slots)
    slos = {}
    if bench.tpot_ms is not None:
        names = ("coding", "chat", "summarization")
        slos = {name: SLO(tpot_ms=target) for name, target in zip(names, bench.tpot_ms, strict=True)}
    source = WorkloadSource(
        partial(read(case.trace).requests, DEMO_MIX),
        bench.duration,
        bench.start,
        urgent="coding",
        slos=slos,
        ms_scale=1.0 if slos else None,
        prompt_scale=bench.lengths,
        output_scale=bench.lengths,
    )
    workload = source.at(Point(speed=case.speed, urgent=case.urgent), machine.baseline)
    policy = make_plus("adaserve+", constants_for(machine.profile, "adaserve+"), PlusParts(coupled=False), constants)
    timed = to_requests(workload, machine.baseline, seed=0)
    played = simulate(timed, policy, machine, recording_named(bench.acceptance, 0))
    return sum(result.attained is True for result in played.results) / len(timed)


def loaded(constants: PlusConstants, bench: Bench, trace: Path, urgent: float) -> Case:
    """The case at the first load at which no more than the goal attain, of loads a tenth apart from where the bench begins."""
    rate = len(read(trace).times) / read(trace).times[-1]
    place = grid_index(bench.speed * 4.2 / rate)  # speeds were chosen for a trace of 4.2 requests a second
    while attained(constants, case := Case(bench, trace, urgent, grid_speed(place))) > GOAL:
        place += 2
    return case


def cases(constants: PlusConstants, traces: Sequence[Path], pool: Executor) -> list[Case]:
    """All cases of some traces."""
    found = [(bench, trace, urgent) for bench in BENCHES for trace in traces for urgent in SHARES]
    return list(pool.map(partial(loaded, constants), *zip(*found, strict=True)))


def value_of(constants: PlusConstants, axis: str) -> float:
    """The number of an axis."""
    found: float = attrgetter(axis)(constants)
    return found


def with_value(constants: PlusConstants, axis: str, value: float) -> PlusConstants:
    """The same constants with another number on an axis."""
    outer, _, inner = axis.partition(".")
    changed: Any = replace(getattr(constants, outer), **{inner: value}) if inner else value
    return replace(constants, **{outer: changed})


@dataclass(frozen=True)
class Trial:
    """Another value on an axis, and by how many points more attain than by the best constants until then.

    searched, checked: over the cases of the search and of the check.
    """

    axis: str
    value: float
    searched: float
    checked: float
    kept: bool

    def __str__(self) -> str:
        """A row of the table."""
        return f"| {self.axis} | {self.value:g} | {self.searched:+.2f} | {self.checked:+.2f} | {'kept' if self.kept else ''} |"


@dataclass(frozen=True)
class Search:
    """Coordinate search. among, checks: cases. gain: points by which a trial must be better among the former to be kept."""

    among: Sequence[Case]
    checks: Sequence[Case]
    gain: float
    pool: Executor

    def __call__(self, start: PlusConstants, axes: Sequence[str], rounds: int) -> tuple[PlusConstants, list[Trial]]:
        """The constants that it ends at, and all trials, each of which it says on stderr."""
        best, score, check = start, self._mean(start, self.among), self._mean(start, self.checks)
        print(f"start {score:.2f}, check {check:.2f}", file=sys.stderr, flush=True)
        trials: list[Trial] = []
        for _ in range(rounds):
            before = best
            for axis in axes:
                values = AXES[axis]
                at = values.index(value_of(best, axis))
                for value in (*values[max(at - 1, 0) : at], *values[at + 1 : at + 2]):
                    tried = with_value(best, axis, value)
                    searched = self._mean(tried, self.among)
                    checked = self._mean(tried, self.checks)
                    kept = searched >= score + self.gain and checked >= check
                    trials.append(Trial(axis, value, searched - score, checked - check, kept))
                    print(trials[-1], file=sys.stderr, flush=True)
                    if kept:
                        best, score, check = tried, searched, checked
            if best == before:
                break
        return best, trials

    def _mean(self, constants: PlusConstants, cases: Sequence[Case]) -> float:
        """Requests that attain, in percent: the mean over the cases."""
        return 100 * sum(self.pool.map(partial(attained, constants), cases)) / len(cases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", nargs="+", type=Path, required=True, metavar="TRACE")
    parser.add_argument("--check", nargs="+", type=Path, required=True, metavar="TRACE")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), metavar="AXIS", help=f"of {', '.join(AXES)}")
    parser.add_argument("--gain", type=float, default=0.3, help="points by which a trial must be better to be kept")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    start = PlusConstants()
    with ProcessPoolExecutor(args.jobs) as pool:
        checks = cases(start, args.check, pool)
        search = Search(cases(start, args.search, pool), checks, args.gain, pool)
        found, trials = search(start, args.axes, args.rounds)
        rows = [list(pool.map(partial(attained, constants), checks)) for constants in (start, found)]
    print("| axis | value | points, searched | points, check | |\n|---|---|---|---|---|", *trials, sep="\n")
    print("\n| check | as it was | found |\n|---|---|---|")
    for case, before, after in zip(checks, *rows, strict=True):
        print(f"| {case} | {before:.1%} | {after:.1%} |")
    means = [sum(row) / len(row) for row in rows]
    print(f"| mean | {means[0]:.2%} | {means[1]:.2%} |")
    changed = {axis: value_of(found, axis) for axis in AXES if value_of(found, axis) != value_of(start, axis)}
    print(json.dumps({"changed": changed, "check": {"before": means[0], "after": means[1]}}))


if __name__ == "__main__":
    main()
