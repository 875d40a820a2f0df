"""The constants of `adaserve+`: a search on some traces over several simulated machines at once, and a check on others.

    .venv/bin/python benchmarks/plus_constants.py --search mixed_rps{2.6,4.8}.json --check mixed_rps{3.4,4.2}.json

They are the same on every machine, so what is searched for must suit them all: a large model on old GPUs and on a new one, as
planned and as measured, and the demo pair on a CPU, which serves short pieces at its own targets. A case is a trace on a machine
at a share of urgent requests, under the load at which the constants as they are attain 95% at most. One axis is tried after the
other, a step down and a step up; kept is what attains more on average over all cases of the search, by at least `--gain`
points. Then start and end are played on the cases of the check, at loads found in the same way. Drafts are not coupled, for the
recordings are not. Every trial goes to stderr, a table to stdout; the last line is one JSON object.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

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
AXES: Mapping[str, Sequence[float]] = {
    "pace": (0.9, 0.94, 0.96, 0.98, 1.0),
    "urgency": (1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    "prompt_worth": (0.25, 0.35, 0.5, 0.7, 1.0),
    "prompt_rows": (64, 128, 192, 256, 384, 512),
    "prompt_least": (0.125, 0.25, 0.5, 0.75, 1.0),
    "patience": (2.0, 3.0, 4.0, 5.0, 7.0, 10.0),
    "chunk_part": (0.25, 0.5, 0.75, 1.0),
    "chunk_cheap": (1.0, 1.05, 1.1, 1.2, 1.4),
    "prompt_stretch": (1.0, 1.5, 2.0, 3.0, 4.0),
    "catching_up": (0.0, 0.02, 0.05, 0.1, 0.2),
    "reading_margin": (1.0, 1.3, 1.7, 2.5),
    "reading_rows": (512, 1024, 2048, 4096),
    "depth_max": (2, 3, 4, 6),
    "width_max": (1, 2, 3, 4),
    "draft_rows": (16, 32, 64, 128),
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


def search(start: PlusConstants, among: Sequence[Case], pool: Executor, gain: float, rounds: int) -> PlusConstants:
    """Coordinate search; says every trial on stderr."""
    best, score = start, _mean(start, among, pool)
    print(f"start {score:.2%}", file=sys.stderr, flush=True)
    for _ in range(rounds):
        before = best
        for name, values in AXES.items():
            at = values.index(getattr(best, name))
            for place in (at - 1, at + 1):
                if not 0 <= place < len(values):
                    continue
                tried = replace(best, **{name: values[place]})
                found = _mean(tried, among, pool)
                kept = found >= score + gain / 100
                print(f"{name} {values[place]:g}: {found:.2%}{' kept' if kept else ''}", file=sys.stderr, flush=True)
                if kept:
                    best, score = tried, found
        if best == before:
            break
    return best


def _mean(constants: PlusConstants, among: Sequence[Case], pool: Executor) -> float:
    return sum(pool.map(partial(attained, constants), among)) / len(among)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", nargs="+", type=Path, required=True, metavar="TRACE")
    parser.add_argument("--check", nargs="+", type=Path, required=True, metavar="TRACE")
    parser.add_argument("--gain", type=float, default=0.3, help="points by which a trial must be better to be kept")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    start = PlusConstants()
    with ProcessPoolExecutor(args.jobs) as pool:
        found = search(start, cases(start, args.search, pool), pool, args.gain, args.rounds)
        checks = cases(start, args.check, pool)
        rows = [list(pool.map(partial(attained, constants), checks)) for constants in (start, found)]
    print("| check | as it was | found |\n|---|---|---|")
    for case, before, after in zip(checks, *rows, strict=True):
        print(f"| {case} | {before:.1%} | {after:.1%} |")
    means = [sum(row) / len(row) for row in rows]
    print(f"| mean | {means[0]:.2%} | {means[1]:.2%} |")
    changed = {name: value for name, value in asdict(found).items() if value != getattr(start, name)}
    print(json.dumps({"changed": changed, "check": {"before": means[0], "after": means[1]}}))


if __name__ == "__main__":
    main()
