"""What a step costs when several GPUs share the model, beside what each rank's own matrix products cost; whether tokens agree.

Every number of ranks runs in processes of its own. The target has the shape of a large model and computes what a small random one
does (models/grow.py); the draft is the small one with noise, on rank 0 alone.

    step    a whole verification by rows, host and draws included, as `adaserve profile` measures it
    floor   the matrix products of one rank's share alone: what would remain if attention and collectives were free
    tokens  of some requests, plainly decoded and speculated, compared with the fewest ranks': in float64 all must agree; in
            bfloat16 they part where two scores are nearly equal, so the share of tokens before the first difference is told

    python benchmarks/gpu_parallel.py --shape 70b --sizes 2,4
    python benchmarks/gpu_parallel.py --shape tiny --sizes 1,2 --device cpu --dtype float64

    python benchmarks/gpu_parallel.py --shape 8b --sizes 1 --connected      # on one GPU: are NCCL's collectives captured at all?

The last line is one JSON object.
"""

import argparse
import faulthandler
import json
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from statistics import median
from typing import Any

import torch
from gpu_models import TINY
from gpu_ranks import add_meeting, be_rank, led, meet, start
from torch import Tensor

from adaserve.assembly import Models, Sizes, assemble_engine, make_executor
from adaserve.clock import Clock, WallClock
from adaserve.executor.executor import Executor
from adaserve.executor.profiler import Profiler
from adaserve.executor.shipped import profile_named
from adaserve.models.config import ModelConfig
from adaserve.models.decoder import Decoder
from adaserve.models.grow import SHAPES, GrownWeights, grown_config
from adaserve.models.random import noisy_copy, random_weights, tiny_config
from adaserve.models.weights import assemble
from adaserve.parallel.group import ALONE, Group, disconnect
from adaserve.parallel.ranks import Ranks
from adaserve.parallel.world import check_devices
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import make_policy
from adaserve.request import Request, SamplingParams, Targets
from adaserve.runtime.capture import capture

DTYPES = {"bfloat16": torch.bfloat16, "float64": torch.float64}
LENGTH, PAGE = 512, 16
SCALE = 8.0
"""Of the small model's logits: sharp enough that a noisy draft is often right."""
REQUESTS = 8
"""Whose tokens are compared."""


def small_config(shape: str) -> ModelConfig:
    """The small model's: for a real shape of SmolLM2's width."""
    if shape == "tiny":
        return tiny_config()
    return tiny_config(layers=8, hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab_size=49152)


def target_of(args: argparse.Namespace, group: Group) -> Decoder:
    """This rank's share of the grown model, whose tensors are made one at a time on the device, and cut."""
    small = small_config(args.shape)
    large = grown_config(small, TINY if args.shape == "tiny" else SHAPES[args.shape])
    dtype = DTYPES[args.dtype]
    grown = GrownWeights(small, random_weights(small, 0, SCALE), large, dtype=dtype, device=args.device)
    return assemble(large, grown, "grown", dtype=dtype, device=args.device, positions=LENGTH, group=group)


def sizes_of(args: argparse.Namespace) -> Sizes:
    """Of the engines: as many requests as there are rows to measure, each with its longest sequence."""
    return Sizes(args.requests, LENGTH, args.requests * LENGTH // PAGE + 1, PAGE)


def lead(args: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Be rank 0: start the others one by one, measure, and say what was found."""
    ranks = start(args.size, __file__, command_of(args, args.size))
    clock = WallClock()
    group: Group = ALONE
    try:
        group = meet(ranks, args.size, device, connected=args.connected)
        return measure(args, ranks, group, device)
    finally:
        tell(clock, group, "ending")
        faulthandler.dump_traceback_later(15, repeat=True)  # NCCL may wait here for ever, and says nothing
        ranks.close()
        tell(clock, group, "the other ranks have ended")
        disconnect()
        tell(clock, group, "the group has ended")


def measure(args: argparse.Namespace, ranks: Ranks, group: Group, device: torch.device) -> dict[str, object]:
    """Step times, floors, and tokens."""
    clock, sizes, small = WallClock(), sizes_of(args), small_config(args.shape)
    target = target_of(args, group)
    weights = noisy_copy(random_weights(small, 0, SCALE), 0.1, 1)
    draft = assemble(small, weights, "draft", dtype=DTYPES[args.dtype], device=device, positions=LENGTH)
    models = Models(target, draft)
    executor = led(make_executor(models, sizes, clock), group, ranks)
    tell(clock, group, "loaded")
    try:
        return measure_steps(args, executor, models, sizes, clock, group)
    finally:
        executor.close()


def measure_steps(
    args: argparse.Namespace, executor: Executor, models: Models, sizes: Sizes, clock: Clock, group: Group
) -> dict[str, object]:
    """With everything loaded."""
    target, device, small = models.target, models.target.device, small_config(args.shape)
    tokens = {}
    for policy in ("continuous", "spec:3"):
        tokens[policy] = generate(executor, models, sizes, policy, clock)
        tell(clock, group, f"tokens of {policy}, whose checksum is {zlib.crc32(repr(tokens[policy]).encode()):08x}")
    if args.tokens:
        return {"step_ms": {}, "floor_ms": {}, "draft_step_ms": {}, "tokens": tokens}
    curves = Profiler(
        executor,
        slots=sizes.slots,
        pages=sizes.pages,
        page_size=PAGE,
        length=LENGTH,
        vocab_size=small.vocab_size,
        drafts=True,
        device=device,
    ).curves(partial(tell, clock, group))
    steps = {rows: seconds * 1e3 for rows, seconds in curves.verify.items()}
    floors = {rows: products(target, rows, clock) * 1e3 for rows in steps}
    return {
        "step_ms": steps,
        "floor_ms": floors,
        "draft_step_ms": {rows: seconds * 1e3 for rows, seconds in curves.draft.items()},
        "tokens": tokens,
    }


def tell(clock: Clock, group: Group, line: str) -> None:
    """Show where it is."""
    print(f"{clock.now():9.1f} s, {group.size} ranks: {line}", file=sys.stderr, flush=True)


def products(target: Decoder, rows: int, clock: Clock) -> float:
    """Seconds of the matrix products of one pass over this rank's share; the median of some runs."""
    config, device = target.config, target.device

    def zeros(width: int) -> Tensor:
        return torch.zeros(rows, width, dtype=target.dtype, device=device)

    hidden, heads, wide = zeros(config.hidden), zeros(config.heads * config.head_dim), zeros(config.intermediate)

    def run() -> None:
        for layer in target.layers:
            layer.qkv(hidden)
            layer.output(heads)
            layer.gate_up(hidden)
            layer.down(wide)
        target.head(hidden)

    call: Callable[[], object] = run
    run()
    if device.type == "cuda":
        graph, _ = capture(run, torch.cuda.graph_pool_handle(), torch.cuda.Stream(device))
        call = graph.replay
    times = []
    for _ in range(10):
        started = clock.now()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock.now() - started)
    return median(times)


def generate(executor: Executor, models: Models, sizes: Sizes, name: str, clock: Clock) -> list[list[int]]:
    """Tokens of a few requests, greedy and sampled."""
    policy = make_policy(name, Constants(verify_rows=64, draft_rows=32))
    profile = profile_named("h200-32b")  # what steps take must not matter for tokens
    engine = assemble_engine(models, sizes, policy, profile, clock=clock, executor=executor)
    draw = random.Random(0)
    tokens: dict[str, list[int]] = {}
    for number in range(REQUESTS):
        request = Request(
            id=str(number),
            prompt=tuple(draw.choices(range(models.target.config.vocab_size), k=20 + number)),
            sampling=SamplingParams(max_tokens=48, temperature=float(number % 2), ignore_eos=True),
            targets=Targets(tpot=0.02),
            seed=number,
            arrived=clock.now(),
        )
        tokens[request.id] = []
        engine.add(request)
    while (report := engine.step()) is not None:
        for update in report.updates:
            tokens[update.id] += update.tokens
    return list(tokens.values())


def agreement(first: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """The share of tokens before the first difference of each request."""
    same = sum(
        len(list(takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))) for a, b in zip(first, other, strict=True)
    )
    return same / sum(map(len, first))


def command_of(args: argparse.Namespace, size: int) -> list[str]:
    """The options of a process that measures this number of ranks."""
    shared = ["--shape", args.shape, "--device", args.device, "--dtype", args.dtype, "--requests", str(args.requests)]
    flags = [f"--{name}" for name in ("connected", "tokens") if getattr(args, name)]
    return [*shared, "--size", str(size), *flags]


def report(found: Mapping[int, dict[str, Any]], args: argparse.Namespace) -> dict[str, object]:
    """Put the numbers of ranks side by side."""
    fewest = found[min(found)]
    for size, measured in found.items():
        for rows, step in measured["step_ms"].items():
            floor = measured["floor_ms"][rows]
            print(f"{size} ranks, {rows:>4} rows: step {step:8.3f} ms, own products {floor:8.3f} ms, ratio {step / floor:5.2f}")
    plain = fewest["tokens"]["continuous"]
    return {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "shape": args.shape,
        "dtype": args.dtype,
        "sizes": {str(size): {k: v for k, v in measured.items() if k != "tokens"} for size, measured in found.items()},
        "agreement": {
            str(size): {policy: agreement(plain, tokens) for policy, tokens in measured["tokens"].items()}
            for size, measured in found.items()
        },
    }


def main() -> None:
    """Run everything, or be one of the processes that this starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", *SHAPES), default="70b")
    parser.add_argument("--sizes", default="1,2,4", help="numbers of ranks, the fewest that hold the model first")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--requests", type=int, default=64, help="most at once")
    parser.add_argument("--connected", action="store_true", help="one rank, too, runs the collectives")
    parser.add_argument("--tokens", action="store_true", help="compare tokens alone, and measure no times")
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    add_meeting(parser)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.size is None:
        found: dict[int, dict[str, Any]] = {}
        check_devices(max(map(int, args.sizes.split(","))), device)
        for size in map(int, args.sizes.split(",")):
            command = [sys.executable, __file__, *command_of(args, size)]
            lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
            found[size] = json.loads(lines[-1])
        print(json.dumps(report(found, args)))
        return
    if args.meeting:
        be_rank(args.meeting, device, lambda group: make_executor(Models(target_of(args, group)), sizes_of(args), WallClock()))
    else:
        print(json.dumps(lead(args, device)), flush=True)
    os._exit(0)  # the interpreter's end may wait for NCCL's threads, and the result for the interpreter's end


if __name__ == "__main__":
    main()
