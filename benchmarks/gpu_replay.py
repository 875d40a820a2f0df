"""A trace replayed on GPUs, in open loop: how many requests attain, under each policy, on the models of gpu_models.py.

    python benchmarks/gpu_replay.py trace.json --model smollm2.gguf --draft distilled --speed 5 --policy adaserve sarathi spec:4

The profile is measured first; the scheduler believes it, and its baseline is what relative targets refer to (`--ms-scale auto` is
what makes the others fit the machine). Before each measured run the trace's first seconds run once, so that kernels are compiled
and graphs captured. `--out` gets the report of `adaserve bench`. The last line is one JSON object.

    python benchmarks/gpu_replay.py trace.json --model smollm2.gguf --draft distilled --shape 70b --ranks 2 --speed 4
"""

import argparse
import gc
import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from gpu_models import add_model_options, build
from gpu_ranks import add_meeting, be_rank, led, meet, start

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
from adaserve.executor.executor import Executor
from adaserve.measure import measure_profile
from adaserve.parallel.group import Group
from adaserve.parallel.ranks import Ranks
from adaserve.tuning import TUNINGS, machine_constants

PAGE = 16
WARM_UP = 20.0
"""Seconds: long enough that as many requests run at once as later."""


def main() -> None:
    """Replay, or be one of the ranks that this starts."""
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
    parser.add_argument("--ranks", type=int, default=1, help="GPUs that share the target")
    add_meeting(parser)
    args = parser.parse_args()
    if args.model is None:
        parser.error("a trace has texts: give --model")
    if args.meeting:
        be_rank(args.meeting, torch.device(args.device), partial(_executor_of_rank, args))
        os._exit(0)  # nothing is left to save, and NCCL's threads may be waited for
    ranks = start(args.ranks, __file__, sys.argv[1:])
    try:
        report = _replay(args, ranks, meet(ranks, args.ranks, torch.device(args.device)))
    finally:
        ranks.close()
    print(json.dumps(report), flush=True)
    os._exit(0)


def _replay(args: argparse.Namespace, ranks: Ranks, group: Group) -> dict[str, object]:
    """Run all policies, rank 0 leading; the report of the last run, which has all runs in it."""
    clock = WallClock()
    begin = clock.now()
    source = source_from(args)
    parts = _parts(args, clock, ranks, group)
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
    runs: list[Run] = []
    report: dict[str, object] = {}
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
            "ranks": args.ranks,
            "draft": args.draft,
            "sizes": asdict(parts.sizes),
            "constants": {name: asdict(machine_constants(parts.config, parts.profile, name)) for name in args.policy},
            "profile": parts.profile.to_json(),
            "commit": commit(),
        }
        report = write_report(args.out, config, f"{args.ranks} x {_device(args)}; {processor()}", runs, None)
    return report


def _sizes(args: argparse.Namespace) -> Sizes:
    return Sizes(args.slots, args.length, args.kv_tokens // PAGE, PAGE)


def _executor_of_rank(args: argparse.Namespace, group: Group) -> Executor:
    """Another rank's, which has no draft."""
    return make_executor(Models(build(args, group).target), _sizes(args), WallClock())


def _parts(args: argparse.Namespace, clock: WallClock, ranks: Ranks, group: Group) -> Parts:
    bench = build(args, group)
    assert bench.tokenizer is not None, "there is a --model"
    models = Models(bench.target, bench.draft)
    sizes = _sizes(args)
    executor = led(make_executor(models, sizes, clock), group, ranks)
    name = f"{args.shape} on {args.ranks}, {args.draft} draft"
    profile = measure_profile(models, sizes, executor, name, lambda line: print("  " + line, flush=True))
    config = EngineConfig(name, tuning=str(args.tuning), max_num_seqs=args.slots)
    return Parts(config, models, sizes, executor, bench.tokenizer, profile, clock, f"{name} x {_device(args)}")


def _device(args: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if args.device == "cuda" else "cpu"


def _warm_up(parts: Parts, source: WorkloadSource, point: Point, baseline: float, policy: str, seed: int) -> None:
    workload = source.at(point, baseline)
    first = type(workload)(tuple(a for a in workload.arrivals if a.at < WARM_UP))
    EngineRunner(parts, baseline=baseline, temperature=0.0, seed=seed, stop=lambda: False, drain=1.0)(policy, first, _nothing)


def _nothing(progress: Progress) -> None:
    pass


if __name__ == "__main__":
    main()
