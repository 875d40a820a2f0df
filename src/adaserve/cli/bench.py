"""Replay a trace, in open loop, against the built-in engine or any OpenAI-compatible server, and report who got tokens in time.

The built-in engine runs once per policy, with the same models, slots, cache and requests. With --base-url the server at that
address is measured, by the same rules. Results are kept in --out as each run ends; the same command goes on where it was stopped.
"""

import argparse
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from adaserve.bench.about import processor
from adaserve.bench.numbers import positive
from adaserve.bench.source import WorkloadSource
from adaserve.bench.workloads import add_workload_options, base_point, points_from, source_from
from adaserve.cli.checks import check_engine
from adaserve.cli.experiment import Stop, Subject, add_experiment_options, conduct
from adaserve.cli.options import DEFAULTS, add_engine_options, engine_config
from adaserve.clock import WallClock
from adaserve.errors import InvalidConfig

DRAIN = 300.0

EXAMPLES = """examples:
  adaserve bench trace.json --policy adaserve continuous spec:3 --speed 0.2 --ms-scale auto --duration 60 --out results
  adaserve bench generated --duration 60 --rate 2 --policy adaserve continuous --capacity
  adaserve bench trace.json --sweep rate=0.2,0.3,0.4 --sweep urgent=0.2,0.4,0.6,0.9 --policy adaserve spec:4 --out sweep
  adaserve bench trace.json --base-url http://localhost:8000 --policy vllm --baseline-ms 17 --out peer
  adaserve bench azure.csv --mix coding=0.5,chat=0.5 --slo-class chat=tpot:80,ttft:2000 --prompt-scale 0.2 --duration 120"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_workload_options(parser)
    group = parser.add_argument_group("benchmark")
    group.add_argument("--model", metavar="M", help="model of the built-in engine (default: demo), or the server's to call")
    group.add_argument("--base-url", metavar="URL", help="measure the server there instead of the built-in engine")
    group.add_argument("--api-key", metavar="KEY", help="key for that server (or ADASERVE_API_KEY)")
    group.add_argument(
        "--policy",
        nargs="+",
        action="extend",
        metavar="P",
        help=f"policies to run, one after the other (default: {DEFAULTS.policy}); with --base-url: what to call the server",
    )
    group.add_argument(
        "--baseline-ms", type=positive, metavar="MS", help="what relative targets refer to, per token (default: measured)"
    )
    add_experiment_options(group)
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="of all requests; 0 is greedy (default: 0)")
    group.add_argument(
        "--drain",
        type=positive,
        default=DRAIN,
        metavar="S",
        help="time to finish after the last arrival (default: %(default)g s)",
    )
    group.add_argument(
        "--record", action="store_true", help="also keep every run's outputs and step times, to calibrate the simulator by"
    )
    add_engine_options(parser, model=False, policy=False)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; the last line on stdout is the report."""
    source = source_from(args)
    points_from(args)  # what is wrong with the sweeps shows before anything slow
    stop = Stop()
    with ExitStack() as opened:
        return conduct(args, source, _server(args, stop) if args.base_url else _engine(args, source, stop, opened), stop)


def _engine(args: argparse.Namespace, source: WorkloadSource, stop: Stop, opened: ExitStack) -> Subject:
    policies = list(dict.fromkeys(args.policy or [DEFAULTS.policy]))
    args.model, args.policy = args.model or DEFAULTS.model, policies[0]
    if args.record and not args.out:
        raise InvalidConfig("--record needs a folder: give --out")
    config = engine_config(args)
    check_engine(config)
    from adaserve.bench.engine_runner import EngineRunner
    from adaserve.build import load_parts
    from adaserve.tuning import machine_constants

    parts = load_parts(config, lambda line: print(line, file=sys.stderr, flush=True))
    opened.callback(parts.close)
    for name in policies:
        parts.policy(name)  # a wrong name shows before the first run
    baseline = (args.baseline_ms or parts.profile.baseline_ms_per_token) / 1e3
    beyond_eos = parts.models.lookup and any(a.ignore_eos for a in source.at(base_point(args), baseline).arrivals)
    return Subject(
        baseline=baseline,
        runner=lambda baseline: EngineRunner(
            parts,
            baseline=baseline,
            temperature=args.temperature,
            seed=args.seed,
            stop=stop,
            drain=args.drain,
            record=Path(args.out) / "recorded" if args.record else None,
        ),
        policies=policies,
        device=f"{parts.description}; {processor()}",
        conditions={
            **{name: value for name, value in vars(config).items() if name != "policy"},
            **_common(args),
            "lookup_over_earlier_requests": parts.models.recalls,
            **({"looks_up_beyond_eos": True} if beyond_eos else {}),
            "sizes": asdict(parts.sizes),
            "constants": asdict(machine_constants(config, parts.profile)),
            "profile_digest": sha256(json.dumps(parts.profile.to_json()).encode()).hexdigest()[:16],
        },
    )


def _server(args: argparse.Namespace, stop: Stop) -> Subject:
    try:
        from adaserve.bench.url_runner import UrlRunner, connect, measure_baseline
    except ImportError as error:
        raise InvalidConfig(f"--base-url needs {error.name}; run: pip install 'adaserve[server]'") from error
    clock = WallClock()
    peer = connect(args.base_url, args.model, args.api_key or os.environ.get("ADASERVE_API_KEY"), clock)
    names = list(dict.fromkeys(args.policy or [peer.model]))
    if len(names) > 1:
        raise InvalidConfig("with --base-url give one --policy at most: it only names the server in the report")
    return Subject(
        baseline=measure_baseline(peer, clock) if args.baseline_ms is None else args.baseline_ms / 1e3,
        runner=lambda baseline: UrlRunner(
            peer, baseline, clock, temperature=args.temperature, seed=args.seed, stop=stop, drain=args.drain
        ),
        policies=names,
        device=f"{peer.url}; client on {processor()}",
        conditions={**_common(args), "base_url": peer.url, "model": peer.model, "takes_ignore_eos": peer.takes_ignore_eos},
    )


def _common(args: argparse.Namespace) -> dict[str, object]:
    return {
        "temperature": args.temperature,
        "seed": args.seed,
        "drain_s": args.drain,
        "baseline": "measured" if args.baseline_ms is None else f"stated: {args.baseline_ms:g} ms",
    }
