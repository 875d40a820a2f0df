"""Long contexts through a whole engine on one GPU: where a decoding step's time goes when KV is as large as the weights.

32 requests with 7,000 tokens each hold 58 GB of keys and values in the 32b shape, and every step reads them all: 13.7 ms at a
copy's 4.3 TB/s, beside 14.5 ms for the weights. A verification of several rows a request reads them once too, so speculation
gains more here than with short contexts, as long as attention keeps near bandwidth with more rows in a tile. Prompts cost more
than all decoding (224,000 tokens of a 32b model: 20 s or more), so they are read once, and every run finds them in the page
cache.

    reads       bytes of keys and values that attention must read in a step: what it sees, once for each pass over a model
    attention   its kernels' time in a step, as a profiler sums it; their share of all kernels' time. TB/s is reads over that. A
                kernel that is launched early waits inside for the one before it, so sums count some time twice
    step        device time from the first graph of one step to that of the next, between events around every graph
    between     of that what no graph fills: the device waits for the host, or copies a few numbers. What a graph takes from its
                launch to its first kernel counts as the graph's, so this is a bound from below on idle time, by 10 to 60 us a
                graph where the host comes too late
    alone       the same without what is done while the host plans: neither are plain steps launched ahead of it, nor trees grown

A section of gpu_step.py: python benchmarks/gpu_step.py --only context --contexts 32x7000 (needs 140 GB; 16x2000 fits 80 GB)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from statistics import fmean
from typing import Any
from unittest.mock import patch

from gpu_models import Bench
from gpu_serve import PAGE, requests_of, serve_requests
from gpu_timing import GraphTimes, by_kernel, free_memory, print_kernels

from adaserve.assembly import Models, Sizes, assemble_engine, make_executor
from adaserve.cache.pool import KVPool
from adaserve.clock import WallClock
from adaserve.engine import Engine
from adaserve.executor.device import DeviceExecutor
from adaserve.executor.shipped import profile_named
from adaserve.models.decoder import Decoder
from adaserve.policy.adaptive import AdaptiveScheduling, Constants
from adaserve.policy.policy import Demand, Policy, RowShare
from adaserve.policy.selection import LikelihoodSelection
from adaserve.request import Request
from adaserve.speculation.model import ModelDrafter
from adaserve.step import StepOutcome

OUTPUT = 64
"""Tokens of each request."""
CHUNK = 4096
"""Prompt rows a step."""
TREES = ((0, 1), (3, 1))
"""Depths and widths; the first is plain decoding."""
SETTLED, PROFILED = 3, 6
"""Steps that all decode in before any is measured; steps under the profiler."""
TEXTS = 5
"""Different texts of a request that the cache must hold beside its prompt: whatever is evicted would have to be read again."""


class Changing:
    """A scheduling that is changed between runs, so that they are one engine's and share its page cache."""

    def __init__(self, rows: int) -> None:
        self._constants = Constants(
            rows, draft_rows=rows, depth_max=max(d for d, _ in TREES), prompt_rows=CHUNK, idle_prompt_rows=CHUNK
        )
        self.tree = TREES[-1]

    @property
    def deepest(self) -> int:
        return self._constants.depth_max

    def share(self, demand: Demand) -> RowShare:
        return AdaptiveScheduling(self._constants, *self.tree).share(demand)


def parse_contexts(text: str) -> list[tuple[int, int]]:
    """Read numbers of requests and their prompts' lengths: 32x7000,16x2000."""
    return [(int(count), int(length)) for count, length in (part.split("x") for part in text.split(","))]


def long_contexts(bench: Bench, contexts: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Plain and speculating, for each number of requests and length of prompt."""
    found = {}
    for count, length in contexts:
        found[f"{count} x {length}"] = _measure(bench, count, length)
        free_memory()
    return {"context": found}


def _measure(bench: Bench, count: int, length: int) -> dict[str, Any]:
    scheduling = Changing(count * (1 + max(d * w for d, w in TREES)))
    models, clock = Models(bench.target, bench.draft), WallClock()
    pages = count * (-(-(length + OUTPUT) // PAGE) + 2 + TEXTS * (OUTPUT // PAGE + 2))
    sizes = Sizes(count, length + OUTPUT + 16, pages, PAGE)
    policy = Policy("changing", scheduling, LikelihoodSelection(), per_request=63)
    executor = make_executor(models, sizes, clock)
    engine = assemble_engine(models, sizes, policy, profile_named("h200-32b"), clock=clock, executor=executor)
    requests = requests_of(bench, count, length, OUTPUT)

    read, _ = serve_requests(engine, _named(requests, "read", 1))
    print(f"  {count} x {length}: prompts in {read.seconds:.1f} s, {count * length / read.seconds:.0f} tokens/s", flush=True)
    found: dict[str, Any] = {"prompt_tokens_s": count * length / read.seconds}
    for tree in TREES:
        scheduling.tree = tree
        title = f"{tree[0]} x {tree[1]}" if tree[0] else "plain"
        for _ in _whole_steps(engine, _named(requests, f"{title}, warm", OUTPUT // 4)):
            pass  # graphs are captured
        one = {
            "overlapped": _times(engine, _named(requests, f"{title}, overlapped", OUTPUT), nullcontext),
            "alone": _times(engine, _named(requests, f"{title}, alone", OUTPUT), _nothing_meanwhile),
        }
        for name, figures in one.items():
            print(f"    {title}, {name}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()), flush=True)
        if bench.target.device.type == "cuda":
            one["kernels"] = _kernels(bench, engine, _named(requests, f"{title}, profiled", OUTPUT))
        found[title] = one
    return found


def _named(requests: Sequence[Request], name: str, output: int) -> list[Request]:
    """The same requests for another run, with outputs of another length."""
    return [replace(r, id=f"{name} {r.id}", sampling=replace(r.sampling, max_tokens=output)) for r in requests]


@contextmanager
def _nothing_meanwhile() -> Iterator[None]:
    """Have the device do nothing but what a plan asks for."""
    with (
        patch.object(ModelDrafter, "prepare", lambda drafter, plan, table: None),
        patch.object(DeviceExecutor, "runs_ahead", False),
    ):
        yield


def _whole_steps(engine: Engine, requests: list[Request]) -> Iterator[StepOutcome]:
    """Serve requests that come at once to their end; yields after each step in which all of them decoded, before the next."""
    start = engine.clock.now()
    for request in requests:
        engine.add(replace(request, arrived=start))
    read = 0
    while (report := engine.step()) is not None:
        outcome = report.outcome
        if outcome is None:
            continue
        read += sum(chunk.length for chunk in outcome.plan.chunks)
        if read > len(requests) * 2 * PAGE:
            raise RuntimeError("prompts are read once more: the page cache has lost them")
        if len(outcome.plan.decoding) == len(requests) and not outcome.plan.chunks:
            yield outcome


def _times(engine: Engine, requests: list[Request], meanwhile: Callable[[], Any]) -> dict[str, float]:
    """What the steps took in which all requests decoded, but for the first few and the last."""
    times = GraphTimes()
    outcomes: list[StepOutcome] = []
    walls, graphs = [], []
    with meanwhile(), times.watching():
        for outcome in _whole_steps(engine, requests):
            outcomes.append(outcome)
            walls.append(engine.clock.now())
            graphs.append(times.count)
    first, last = min(SETTLED, len(outcomes) - 2), len(outcomes) - 2  # after these steps, the window opens and closes
    count = last - first
    if count < 1:
        raise RuntimeError(f"only {len(outcomes)} steps in which all requests decode: outputs are too short to measure anything")
    window = outcomes[first + 1 : last + 1]
    found = {
        "steps": float(count),
        "tokens_a_step": fmean(sum(map(len, o.tokens)) / len(requests) for o in window),
        "wall_ms": (walls[last] - walls[first]) / count * 1e3,
        "schedule_ms": fmean(o.times.schedule for o in window) * 1e3,
        "commit_ms": fmean(o.times.commit for o in window) * 1e3,
    }
    if times.count:
        span, busy = times.span(graphs[first], graphs[last])
        found |= {
            "graphs": (graphs[last] - graphs[first]) / count,
            "step_ms": span / count,
            "between_ms": (span - busy) / count,
            "between": 1 - busy / span,
        }
    found["tokens_s"] = found["tokens_a_step"] * len(requests) / found["wall_ms"] * 1e3
    return found


def _kernels(bench: Bench, engine: Engine, requests: list[Request]) -> dict[str, Any]:
    """Attention's part in the steps in which all requests decode."""
    steps = _whole_steps(engine, requests)
    for _ in range(SETTLED):
        next(steps)
    outcomes: list[StepOutcome] = []
    kernels = by_kernel(lambda: outcomes.append(next(steps)), PROFILED)
    for _ in steps:
        pass  # to their end
    print_kernels(kernels, 10)
    reads = fmean(_reads(bench, outcome) for outcome in outcomes[1:])  # the first ran before the profiler
    attention = sum(ms for name, ms, _ in kernels if "_attend_kernel" in name or "_merge_kernel" in name)
    everything = sum(ms for _, ms, _ in kernels[1:])
    found = {
        "reads_gb": reads / 1e9,
        "attention_ms": attention,
        "kernels_ms": everything,
        "attention_share": attention / everything,
        "attention_tb_s": reads / attention / 1e9,
    }
    print("      " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()), flush=True)
    return found | {"longest": [(name[:60], ms, count) for name, ms, count in kernels[:10]]}


def _reads(bench: Bench, outcome: StepOutcome) -> float:
    """Bytes of keys and values that a step's attention must read, of both models."""
    return outcome.shape.context * _row_bytes(bench.target) + outcome.shape.draft_context * _row_bytes(bench.draft)


def _row_bytes(decoder: Decoder) -> int:
    config = decoder.config
    return KVPool.row_bytes(layers=config.layers, heads=config.kv_heads, head_dim=config.head_dim, dtype=decoder.kv_dtype)
