"""Finds every policy's constants on a simulated machine and writes them where `adaserve simulate` looks for them.

    .venv/bin/python benchmarks/simulated_constants.py PROFILE TRACE... [--policies P ...] [--out FILE]

The search (adaserve/bench/search.py) raises the load until 95% of requests just fail to attain, and keeps whatever attains more
there. A trial plays the first `--duration` seconds of every trace at every share of urgent requests, so that constants suit more
than one mix, all scaled to the same load in requests per second; one that cannot beat the best any more is cut short. Policies
already in FILE keep their values unless named. Give it other traces than those that results are shown on. The last line is one
JSON object; every trial goes to stderr.
"""

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adaserve.bench.numbers import auto_or_positive
from adaserve.bench.runs import Point
from adaserve.bench.search import AXES, axes_of, climb
from adaserve.bench.source import WorkloadSource
from adaserve.bench.tune import Score
from adaserve.executor.shipped import profile_named, recording_named
from adaserve.metrics import summarize
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import make_policy
from adaserve.simulate import Machine, constants_for, simulate, to_requests
from adaserve.tuning import TUNINGS, load_constants
from adaserve.workload import DEMO_MIX, read

GOAL = 0.95
CHAINS = ("spec:4", "spec:6", "spec:8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", help="a built-in profile or a file")
    parser.add_argument("traces", nargs="+", metavar="TRACE")
    parser.add_argument("--acceptance", default="smollm2-noise-t0")
    every = [name for name in AXES if name != "spec"] + list(CHAINS)
    parser.add_argument("--policies", nargs="+", default=every)
    parser.add_argument("--duration", type=float, default=120.0)
    parser.add_argument("--rate", type=float, default=3.0, help="requests per second at which to begin")
    parser.add_argument(
        "--ms-scale", type=auto_or_positive, default=None, metavar="X|auto", help="multiply targets in ms (default: auto)"
    )
    parser.add_argument("--urgent", nargs="+", type=float, default=(0.2, 0.4, 0.6), help="shares of urgent requests")
    parser.add_argument("--urgent-class", default="coding")
    parser.add_argument("--axes", nargs="+", metavar="FIELD", help="constants to search, the others as they are (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)

    machine = Machine(profile_named(args.profile))
    recording = recording_named(args.acceptance, 0)
    traces = [read(path) for path in args.traces]
    rates = [len(trace.times) / trace.times[-1] for trace in traces]
    sources = [
        WorkloadSource(partial(trace.requests, DEMO_MIX), args.duration, urgent=args.urgent_class, ms_scale=args.ms_scale)
        for trace in traces
    ]
    out = args.out or TUNINGS / f"{machine.profile.name}.json"
    started: dict[str, Any] = (
        json.loads(out.read_text(encoding="utf-8"))
        if out.is_file()
        else {"source": "", "constants": asdict(constants_for(machine.profile, "adaserve")), "policies": {}}
    )

    def score_at(policy: str, constants: Constants, load: float, least: float) -> Score:
        """The share of all requests that attain, over every trace at every urgent share, and the mean goodput."""
        workloads = [
            source.at(Point(load / rate, urgent), machine.baseline)
            for urgent in args.urgent
            for source, rate in zip(sources, rates, strict=True)
        ]
        total, missed, goodput = sum(map(len, workloads)), 0, 0.0
        for workload in workloads:
            timed = to_requests(workload, machine.baseline, seed=0)
            played = simulate(timed, make_policy(policy, constants), machine, recording)
            missed += sum(not result.attained for result in (*played.results, *played.refused))
            if 1 - missed / total < least:
                return Score(1 - missed / total, 0.0)
            goodput += summarize(policy, played.results, played.refused).goodput_tokens_per_s
        return Score(1 - missed / total, goodput / len(workloads))

    for policy in args.policies:
        axes = {name: values for name, values in axes_of(policy).items() if args.axes is None or name in args.axes}
        start = load_constants(out, policy) if out.is_file() else constants_for(machine.profile, policy)
        best, load = start, args.rate
        for trial in climb(start, axes, partial(score_at, policy), GOAL, args.rate, args.rounds):
            tried = {name: getattr(trial.constants, name) for name in axes}
            mark = "*" if trial.kept else " "
            print(
                f"{policy} {trial.load:g}/s {mark} {trial.score.attainment:.4f} {trial.score.goodput:.0f} {tried}",
                file=sys.stderr,
            )
            sys.stderr.flush()
            if trial.kept:
                best, load = trial.constants, trial.load
        started["policies"][policy] = {name: getattr(best, name) for name in axes_of(policy)}
        shares = " ".join(f"{share:g}" for share in args.urgent)
        started["source"] = (
            f"benchmarks/simulated_constants.py {args.profile} {' '.join(Path(t).name for t in args.traces)} "
            f"--acceptance {args.acceptance} --duration {args.duration:g} --urgent {shares}"
        )
        out.write_text(json.dumps(started, indent=1) + "\n", encoding="utf-8")
        print(f"{policy}: {load:g} requests/s, {started['policies'][policy]}", file=sys.stderr, flush=True)
    print(json.dumps({"out": str(out), "policies": started["policies"]}))


if __name__ == "__main__":
    main()
