"""A trace replayed on one GPU, in open loop: how many requests attain, under each policy, on the models of gpu_models.py.

    python benchmarks/gpu_replay.py trace.json --model smollm2.gguf --draft distilled --speed 5 --policy adaserve sarathi spec:4

The profile is measured first; the scheduler believes it, and its baseline is what relative targets refer to (`--ms-scale auto` is
what makes the others fit the machine). Before each measured run the trace's first seconds run once, so that kernels are compiled
and graphs captured. `--out` gets the report of `adaserve bench`. The last line is one JSON object.
"""

import argparse
import gc
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from gpu_models import add_model_options, build

from adaserve.assembly import Models, Sizes, make_executor
from adaserve.bench.about import commit, processor
from adaserve.bench.engine_runner import EngineRunner
from adaserve.bench.replay import Progress
from adaserve.bench.report import write_report
from adaserve.bench.runs import Point, Run
from adaserve.bench.source import WorkloadSource
from adaserve.bench.workloads import add_workload_options, source_from
from adaserve.build import Parts
from adaserve.clock import WallClock
from adaserve.config import EngineConfig
from adaserve.measure import measure_profile
from adaserve.tuning import TUNINGS, machine_constants

PAGE = 16
WARM_UP = 20.0
"""Seconds: long enough that as many requests run at once as later."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_workload_options(parser)
    add_model_options(parser)
    parser.add_argument("--policy", nargs="+", default=["adaserve", "spec:4", "sarathi", "continuous"])
    parser.add_argument("--tuning", type=Path, default=TUNINGS / "h200-32b.json", help="the policies' constants")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--length", type=int, default=4096, help="longest sequence")
    parser.add_argument("--kv-tokens", type=int, default=160_000)
    parser.add_argument("--drain", type=float, default=20.0, help="seconds to finish after the last arrival")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds after which no further run begins")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("gpu-replay"))
    args = parser.parse_args()
    clock = WallClock()
    begin = clock.now()
    source = source_from(args)
    parts = _parts(args, clock)
    gc.collect()
    gc.freeze()  # as the server's engine process does
    baseline = parts.profile.baseline_ms_per_token / 1e3
    runner = EngineRunner(
        parts,
        baseline=baseline,
        temperature=0.0,
        seed=args.seed,
        stop=lambda: False,
        drain=args.drain,
        record=args.out / "recorded",
    )
    point = Point(speed=args.speed, urgent=args.urgent, slo_scale=args.slo_scale, seed=args.seed)
    runs = []
    for policy in args.policy:
        if clock.now() - begin > args.limit:
            print(f"no time left for {policy}")
            continue
        _warm_up(parts, source, point, baseline, policy, args.seed)
        workload = source.at(point, baseline)
        runs.append(Run.of(policy, point, workload, runner(policy, workload, _nothing), commit()))
        print(f"{clock.now() - begin:.0f} s: {json.dumps(asdict(runs[-1].report))}", flush=True)
        config = source.facts | {
            "baseline_ms": baseline * 1e3,
            "shape": args.shape,
            "draft": args.draft,
            "sizes": asdict(parts.sizes),
            "constants": {name: asdict(machine_constants(parts.config, parts.profile, name)) for name in args.policy},
            "profile": parts.profile.to_json(),
            "commit": commit(),
        }
        report = write_report(args.out, config, f"{torch.cuda.get_device_name()}; {processor()}", runs, None)
    print(json.dumps(report))
    return 0


def _parts(args: argparse.Namespace, clock: WallClock) -> Parts:
    bench = build(args)
    if bench.tokenizer is None:
        raise SystemExit("a trace has texts: give --model")
    models = Models(bench.target, bench.draft)
    sizes = Sizes(args.slots, args.length, args.kv_tokens // PAGE, PAGE)
    executor = make_executor(models, sizes, clock)
    name = f"{args.shape}, {args.draft} draft"
    profile = measure_profile(models, sizes, executor, name, lambda line: print("  " + line, flush=True))
    config = EngineConfig(name, tuning=str(args.tuning), max_num_seqs=args.slots)
    return Parts(config, models, sizes, executor, bench.tokenizer, profile, clock, f"{name} on {torch.cuda.get_device_name()}")


def _warm_up(parts: Parts, source: WorkloadSource, point: Point, baseline: float, policy: str, seed: int) -> None:
    workload = source.at(point, baseline)
    first = type(workload)(tuple(a for a in workload.arrivals if a.at < WARM_UP))
    EngineRunner(parts, baseline=baseline, temperature=0.0, seed=seed, stop=lambda: False, drain=1.0)(policy, first, _nothing)


def _nothing(progress: Progress) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())
