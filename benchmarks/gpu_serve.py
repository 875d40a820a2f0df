"""Engines end to end on one GPU: one request plain and speculating, 64 and 128 at once; a section of gpu_step.py."""

import statistics
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from gpu_models import Bench
from gpu_timing import by_kernel, print_kernels, settle

from adaserve.assembly import Models, Sizes, assemble_engine, make_executor
from adaserve.clock import WallClock
from adaserve.engine import Engine
from adaserve.executor.device import DeviceExecutor
from adaserve.executor.shipped import profile_named
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import Overrides, make_policy
from adaserve.request import Request, SamplingParams, Targets

PAGE = 16


@dataclass(frozen=True)
class Served:
    """How an engine fared with requests that came at once."""

    seconds: float
    tokens: int
    tpot_ms: float
    first_ms: float
    tokens_a_step: float
    steps: int
    phases_ms: dict[str, float]
    idle: float


def serve_requests(engine: Engine, requests: list[Request]) -> tuple[Served, dict[str, tuple[int, ...]]]:
    """Run requests that arrive at once to their end."""
    settle()
    start = engine.clock.now()
    tokens: dict[str, list[int]] = {r.id: [] for r in requests}
    results = []
    totals: Counter[str] = Counter()
    slots = 0
    for request in requests:
        engine.add(replace(request, arrived=start))
    while (report := engine.step()) is not None:
        for update in report.updates:
            tokens[update.id] += update.tokens
            if update.result is not None:
                results.append(update.result)
        if report.outcome is not None:
            times = report.outcome.times
            totals.update({k: getattr(times, k) for k in ("schedule", "speculate", "select", "verify", "commit")})
            totals["steps"] += 1
            totals["gained"] += sum(map(len, report.outcome.tokens))
            slots += len(report.outcome.plan.decoding)
    seconds = engine.clock.now() - start
    busy = totals["speculate"] + totals["select"] + totals["verify"]  # the device; the host commits and plans meanwhile
    steps = int(totals["steps"])
    served = Served(
        seconds=seconds,
        tokens=sum(map(len, tokens.values())),
        tpot_ms=statistics.mean(r.tpot for r in results if r.tpot is not None) * 1e3,
        first_ms=statistics.mean(r.ttft for r in results if r.ttft is not None) * 1e3,
        tokens_a_step=totals["gained"] / max(slots, 1),
        steps=steps,
        phases_ms={k: totals[k] / steps * 1e3 for k in ("schedule", "speculate", "select", "verify", "commit")},
        idle=1 - busy / seconds,
    )
    return served, {name: tuple(t) for name, t in tokens.items()}


def requests_of(bench: Bench, count: int, prompt: int, output: int, temperature: float = 0.0) -> list[Request]:
    """Requests with prompts and outputs of given lengths."""
    sampling = SamplingParams(max_tokens=output, temperature=temperature, ignore_eos=True)
    return [Request(f"{i}", bench.prompt(i, prompt), sampling, Targets(tpot=0.001), seed=i, arrived=0.0) for i in range(count)]


SINGLE = ((0, 1), (3, 3), (4, 3), (5, 4), (6, 4), (8, 3))
"""Depths and widths that one request alone tries; the first is plain decoding."""


@dataclass(frozen=True)
class Setting:
    """How a crowd is served. rows: of a verification pass. depth, width: of everybody's tree; None follows Eq. 8 and 9."""

    policy: str
    rows: int
    depth: int | None
    width: int | None

    def __str__(self) -> str:
        tree = "depth and width by load" if self.depth is None else f"{self.depth} x {self.width}"
        return f"{self.policy}, {self.rows} rows, {tree}"


CROWDS = {
    64: (
        Setting("continuous", 64, 0, 1),
        Setting("throughput", 256, None, None),
        Setting("throughput", 192, None, None),
        Setting("adaserve", 256, None, None),
        Setting("adaserve+", 256, None, None),
    ),
    128: (
        Setting("continuous", 128, 0, 1),
        Setting("throughput", 256, None, None),
        Setting("adaserve", 256, None, None),
        Setting("adaserve+", 256, None, None),
    ),
}
"""How so many requests at once are served; the first is plain decoding. All state a target that none can meet.

`adaserve+` reads prompts by constants of its own, 512 rows at a time, the others 4,096."""


@dataclass(frozen=True)
class Bed:
    """Makes engines of different policies on one executor."""

    models: Models
    sizes: Sizes
    executor: DeviceExecutor

    def engine(self, setting: Setting) -> Engine:
        """An engine with an empty cache."""
        constants = Constants(
            setting.rows,
            draft_rows=192,
            depth_offset=-8,
            depth_max=max(setting.depth or 0, 6),
            prompt_rows=4096,
            idle_prompt_rows=4096,
        )
        trees = setting.policy != "continuous"
        overrides = Overrides(budget=setting.rows, depth=setting.depth, width=setting.width) if trees else Overrides()
        return assemble_engine(
            self.models,
            self.sizes,
            make_policy(setting.policy, constants, overrides),
            profile_named("h200-32b-measured"),
            clock=WallClock(),
            executor=self.executor,
            prefix_caching=False,
        )

    def run(self, setting: Setting, requests: list[Request]) -> tuple[Served, dict[str, tuple[int, ...]]]:
        """Serve requests that come at once."""
        return serve_requests(self.engine(setting), requests)


def serve(bench: Bench) -> dict[str, Any]:
    """Engines end to end."""
    models, sizes = Models(bench.target, bench.draft), Sizes(128, 1024, 128 * 40, PAGE)
    bed = Bed(models, sizes, make_executor(models, sizes, WallClock()))
    found = {"single": _alone(bed, bench), "crowds": {str(n): _crowd(bed, bench, n) for n in CROWDS}}
    if bench.full:
        print("  64 requests speculating, by kernel:")
        print_kernels(by_kernel(lambda: bed.run(Setting("throughput", 192, 3, 2), requests_of(bench, 64, 64, 24)), 1), 40)
        print("  one request, plain, 24 steps, by kernel:")
        print_kernels(by_kernel(lambda: bed.run(_single(0, 1), requests_of(bench, 1, 16, 24)), 1), 60)
    return found


def _single(depth: int, width: int) -> Setting:
    return Setting("throughput" if depth else "continuous", 1 + depth * width, depth, width)


def _alone(bed: Bed, bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = {}
    plain: list[dict[str, tuple[int, ...]]] = []
    for depth, width in SINGLE if bench.full else SINGLE[:2]:
        setting = _single(depth, width)
        bed.run(setting, requests_of(bench, 1, 256, 24))
        runs = [bed.run(setting, [request]) for request in requests_of(bench, 3, 256, 192)]
        texts = [text for _, text in runs]
        plain = plain or texts
        one = {
            "tpot_ms": statistics.mean(s.tpot_ms for s, _ in runs),
            "tokens_a_step": statistics.mean(s.tokens_a_step for s, _ in runs),
            "same_texts": sum(a == b for a, b in zip(texts, plain, strict=True)),
            "phases_ms": runs[0][0].phases_ms,
            "idle": runs[0][0].idle,
        }
        found[f"{depth} x {width}"] = one
        print(f"  one request, {depth} x {width}: {one}")
    return found


def _crowd(bed: Bed, bench: Bench, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    plain: dict[str, tuple[int, ...]] = {}
    for setting in CROWDS[count] if bench.full else CROWDS[count][:2]:
        bed.run(setting, requests_of(bench, count, 256, 192))  # captures the graphs of all sizes on the way
        served, texts = bed.run(setting, requests_of(bench, count, 256, 192))
        plain = plain or texts
        differ = sum(plain[name] != text for name, text in texts.items())
        found[str(setting)] = {**vars(served), "tokens_s": served.tokens / served.seconds, "texts_that_differ": differ}
        print(f"  {count} at once, {setting}: {served.tokens / served.seconds:.0f} tokens/s, {differ} texts differ, {served}")
    return found
