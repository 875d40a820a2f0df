"""The options that tell `bench` and `simulate` what to replay: a trace or drawn requests, what becomes of them, and sweeps."""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from adaserve.bench.numbers import auto_or_positive, not_negative, positive, share
from adaserve.bench.runs import Point
from adaserve.bench.source import WorkloadSource
from adaserve.errors import InvalidConfig
from adaserve.server.slo import parse_class
from adaserve.workload import (
    DEMO_MIX,
    Mix,
    RequestClass,
    Workload,
    generate,
    generate_at,
    generate_fluctuating,
    read,
)

GENERATED = "generated"
"""In place of a trace's path: a workload of the project's own, drawn anew for each seed."""

AXES = {"rate": "speed", "urgent": "urgent", "slo-scale": "slo_scale", "seed": "seed"}
"""What can be swept, and the field of Point that it is."""


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    """Add TRACE and the options that say what becomes of it."""
    parser.add_argument(
        "trace",
        metavar="TRACE",
        help="the paper's JSON, our JSON lines, Mooncake JSON lines, Azure LLM or BurstGPT CSV (told apart by content), or the "
        f"word `{GENERATED}`: requests of the project's own",
    )
    group = parser.add_argument_group("workload")
    group.add_argument(
        "--duration", type=positive, default=math.inf, metavar="S", help="send requests for S seconds (default: all)"
    )
    group.add_argument("--start", type=not_negative, default=0.0, metavar="S", help="pass over the trace's first S seconds")
    group.add_argument("--speed", type=positive, default=1.0, metavar="X", help="load: arrivals X times as fast (default: 1)")
    group.add_argument("--slo-scale", type=positive, default=1.0, metavar="X", help="multiply the urgent class's TPOT target")
    group.add_argument(
        "--ms-scale",
        type=auto_or_positive,
        default=1.0,
        metavar="X|auto",
        help="multiply targets in ms; auto: baseline / 30 ms, as on the machine they were chosen on (default: 1)",
    )
    group.add_argument("--urgent", type=share, metavar="SHARE", help="draw the classes anew, this share (0 to 1) urgent")
    group.add_argument("--urgent-class", metavar="NAME", help="the urgent class (default: coding, else the strictest target)")
    group.add_argument(
        "--slo-class",
        action="append",
        default=[],
        metavar="NAME=tpot:50,ttft:500",
        help="a class's targets in ms, or tpot:1.2x times the baseline, in place of the trace's; repeatable",
    )
    group.add_argument(
        "--mix",
        type=mix_of,
        default=DEMO_MIX,
        metavar="CLASS=SHARE,...",
        help="classes of requests whose trace names none (default: coding=0.6,chat=0.2,summarization=0.2)",
    )
    group.add_argument(
        "--own-prompts", action="store_true", help="keep the trace's times alone: classes by --mix, prompts of the project's own"
    )
    group.add_argument("--prompt-scale", type=share, default=1.0, metavar="X", help="cut prompts to their first X (0 to 1)")
    group.add_argument("--output-scale", type=positive, default=1.0, metavar="X", help="ask for X times as many output tokens")
    group.add_argument(
        "--stop-at-eos", action="store_true", help="end outputs where the model says so, even if the trace ignores that"
    )
    group.add_argument("--rate", type=positive, default=4.0, metavar="R", help=f"`{GENERATED}`: requests per second (default: 4)")
    group.add_argument("--cv", type=float, default=1.0, metavar="CV", help=f"`{GENERATED}`: burstiness; 1: Poisson, 0: even")
    group.add_argument(
        "--fluctuate", type=positive, metavar="S", help=f"`{GENERATED}`: classes peak one after the other, every S seconds"
    )
    group.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="AXIS=V,V,...",
        help=f"run each value of {', '.join(AXES)}, other things as they are; repeatable, one sweep after the other",
    )


def source_from(args: argparse.Namespace) -> WorkloadSource:
    """Read the trace that the options name. Raises InvalidTrace or InvalidConfig."""
    requests, facts, classes = _requests(args)
    slos = dict(parse_class(text) for text in args.slo_class)
    if unknown := [name for name in slos if name not in classes]:
        raise InvalidConfig(f"there is no class {unknown[0]!r} in this workload, only {', '.join(classes)}")
    return WorkloadSource(
        requests,
        duration=args.duration,
        start=args.start,
        stop_at_eos=args.stop_at_eos,
        urgent=args.urgent_class,
        slos=slos,
        ms_scale=args.ms_scale,
        prompt_scale=args.prompt_scale,
        output_scale=args.output_scale,
        facts=facts
        | ({"start_s": args.start} if args.start else {})
        | ({"stop_at_eos": True} if args.stop_at_eos else {})
        | {
            "duration_s": None if math.isinf(args.duration) else args.duration,
            "urgent_class": args.urgent_class,
            "slo_class": args.slo_class,
            "ms_scale": "auto" if args.ms_scale is None else args.ms_scale,
            "prompt_scale": args.prompt_scale,
            "output_scale": args.output_scale,
            "mix": {kind.name: share for kind, share in args.mix.shares.items()},
            "own_prompts": args.own_prompts,
        },
    )


def base_point(args: argparse.Namespace) -> Point:
    """The point that the options themselves describe. `--seed` is an option of the command's."""
    return Point(args.speed, args.urgent, args.slo_scale, args.seed)


def points_from(args: argparse.Namespace) -> tuple[Point, ...]:
    """The points to run: the sweeps' values, one axis at a time from the base point; the base point without sweeps."""
    base = base_point(args)
    points = [Point(**{**vars(base), axis: value}) for axis, values in map(_sweep, args.sweep) for value in values]
    return tuple(dict.fromkeys(points)) or (base,)


def mix_of(text: str) -> Mix:
    """Read `coding=0.6,chat=0.4`; the type of an option. The classes are the project's own."""
    known = {kind.name: kind for kind in DEMO_MIX.shares}
    shares: dict[RequestClass, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in known:
            raise argparse.ArgumentTypeError(f"knows the classes {', '.join(known)}, got {part!r}")
        shares[known[name]] = positive(value)
    try:
        return Mix(shares)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _requests(args: argparse.Namespace) -> tuple[Callable[[int, float], Workload], dict[str, Any], Sequence[str]]:
    """The requests by seed and seconds, facts about them, and the names of classes that they may have."""
    mix, drawn = args.mix, [kind.name for kind in DEMO_MIX.shares]
    if args.trace == GENERATED:
        if math.isinf(args.duration):
            raise InvalidConfig(f"`{GENERATED}` has no end of its own: give --duration")
        if not 0 <= args.cv <= 100:
            raise InvalidConfig(f"--cv must be between 0 and 100, got {args.cv:g}")
        facts = {"trace": GENERATED, "rate": args.rate, "cv": args.cv, "fluctuate_s": args.fluctuate}
        return lambda seed, seconds: _generated(args, seed, seconds), facts, drawn
    trace = read(args.trace)
    facts = {"trace": str(args.trace), "format": trace.format, "digest": trace.digest}
    if args.own_prompts:
        return (
            lambda seed, seconds: generate_at([at for at in trace.times if at < seconds], mix, np.random.default_rng(seed)),
            facts,
            drawn,
        )
    classes = drawn if trace.workload is None else trace.workload.classes
    return lambda seed, seconds: trace.requests(mix, seed, seconds), facts, classes


def _generated(args: argparse.Namespace, seed: int, seconds: float) -> Workload:
    rng = np.random.default_rng(seed)
    if args.fluctuate is not None:
        return generate_fluctuating(args.mix, args.rate, seconds, rng, args.fluctuate)
    return generate(args.mix, args.rate, seconds, rng, args.cv)


def _sweep(text: str) -> tuple[str, Sequence[float | int]]:
    axis, equals, values = text.partition("=")
    if not equals or axis not in AXES:
        raise InvalidConfig(f"a sweep reads like rate=0.8,1.0,1.2 with an axis of {', '.join(AXES)}, got {text!r}")
    readers: dict[str, Callable[[str], float | int]] = {"urgent": share, "seed": int}
    read_value = readers.get(axis, positive)
    try:
        return AXES[axis], [read_value(value) for value in values.split(",")]
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise InvalidConfig(f"--sweep {text}: {error}") from None
