"""Prompt chunks sized by the slack of running requests against chunks of fixed sizes, simulated.

    python benchmarks/slack_chunks.py TRACE --profile a100x4-70b --speeds 0.8 1.0 1.2 [--duration S]

All rows are `adaserve+`; the fixed ones without its part `slack_chunks`, with so many prompt rows a step while requests decode.
Gap: the 99th percentile of each request's longest time between two deliveries. The last line is one JSON object.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import torch

from adaserve.bench.numbers import positive, share
from adaserve.bench.runs import Point
from adaserve.bench.source import WorkloadSource
from adaserve.executor.shipped import profile_named, recording_named
from adaserve.metrics import summarize
from adaserve.policy.plus.assembly import make_plus
from adaserve.policy.plus.parts import PlusConstants, PlusParts
from adaserve.policy.policy import Policy
from adaserve.simulate import Machine, constants_for, simulate, to_requests
from adaserve.tuning import load_constants
from adaserve.workload import DEMO_MIX, read


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)  # tensors here are small
    machine = Machine(profile_named(args.profile))
    recording = recording_named(args.acceptance, 0)
    trace = read(args.trace)
    source = WorkloadSource(
        lambda seed, seconds: trace.requests(DEMO_MIX, seed, seconds),
        args.duration,
        start=args.start,
        ms_scale=None,
        prompt_scale=args.prompt_scale,
        output_scale=args.output_scale,
    )
    paper = constants_for(machine.profile, "adaserve+") if args.tuning is None else load_constants(args.tuning, "adaserve+")

    def policy(rows: int | None) -> Policy:
        if rows is None:
            return make_plus("by slack", paper, PlusParts(), PlusConstants())
        return make_plus(f"{rows} rows", replace(paper, prompt_rows=rows), PlusParts().without("slack_chunks"), PlusConstants())

    found = []
    print("| speed | chunks | attained | gap p99 ms | TTFT p50 ms | TTFT p99 ms | goodput tokens/s |\n" + "|---" * 7 + "|")
    for speed in args.speeds:
        workload = source.at(Point(speed=speed), machine.baseline)
        for rows in (None, *args.fixed):
            made = policy(rows)
            played = simulate(to_requests(workload, machine.baseline, seed=args.seed), made, machine, recording, seed=args.seed)
            report = summarize(made.name, played.results, played.refused, played.totals)
            gaps = sorted(r.longest_gap for r in played.results)
            row = {
                "speed": speed,
                "chunks": made.name,
                "attained": round(report.slo_attainment or 0.0, 4),
                "gap_p99_ms": round(1e3 * gaps[min(len(gaps) - 1, math.ceil(0.99 * len(gaps)) - 1)], 1),
                "ttft_p50_ms": round(report.ttft_p50_ms or 0.0, 1),
                "ttft_p99_ms": round(report.ttft_p99_ms or 0.0, 1),
                "goodput_tokens_per_s": round(report.goodput_tokens_per_s, 1),
            }
            found.append(row)
            print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
    print(json.dumps({"trace": Path(args.trace).name, "profile": machine.profile.name, "seed": args.seed, "rows": found}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--profile", default="a100x4-70b", help="a file or a built-in profile (default: %(default)s)")
    parser.add_argument("--acceptance", default="smollm2-noise-t0", help="a recording (default: %(default)s)")
    parser.add_argument("--tuning", help="constants (default: those shipped for the profile)")
    parser.add_argument("--speeds", nargs="+", type=positive, default=[0.8, 1.0, 1.2], help="loads (default: %(default)s)")
    parser.add_argument("--fixed", nargs="+", type=int, default=[32, 64, 128, 256], help="sizes (default: %(default)s)")
    parser.add_argument("--start", type=float, default=0.0, metavar="S")
    parser.add_argument("--duration", type=positive, default=math.inf, metavar="S")
    parser.add_argument("--prompt-scale", type=share, default=1.0, metavar="X")
    parser.add_argument("--output-scale", type=positive, default=1.0, metavar="X")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
