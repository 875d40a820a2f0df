"""What a step costs on one GPU, beside what the machine could do: the table of targets, measured in a few minutes.

The models are those of gpu_models.py: a target of the 32b shape that computes what a small model does, and a draft for it.

    floor      a device copy; the matrix products of one pass alone, by rows
    pass       the target's whole pass, by rows; where 64 rows spend it, by kernel
    draft      one draft step: 64 requests, width 3, contexts up to 256 and 1,000
    serve      engines: one request plain and speculating, 64 and 128 at once under several policies, how long the device idles
    long       attention of 32 requests with 7,000 tokens each, and of shorter ones, against the bytes that it must read
    profile    the curves that `adaserve profile` measures, and the budgets from them
    context    engines with long contexts, if asked for: gpu_context.py

    python benchmarks/gpu_step.py --model smollm2.gguf --only floor,pass,draft
    python benchmarks/gpu_step.py                       # without a model: random weights, so nothing is worth speculating

Times are medians of graph replays between device events. "Queued" is what a call takes when the device has other work until it
is launched, as in an engine that plans ahead; without, launching counts too. The last line is one JSON object.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from gpu_context import long_contexts, parse_contexts
from gpu_models import Bench, add_model_options, build
from gpu_reading import PAGE, Reader
from gpu_serve import serve
from gpu_timing import by_kernel, free_memory, graph_of, milliseconds, print_kernels

from adaserve.assembly import Models, Sizes, make_executor
from adaserve.attention.paged import attend
from adaserve.attention.tiling import tile
from adaserve.clock import WallClock
from adaserve.executor.device import DeviceExecutor
from adaserve.measure import measure_profile
from adaserve.models.config import ModelConfig
from adaserve.models.decoder import Decoder
from adaserve.profile import budget_from
from adaserve.request import SamplingParams
from adaserve.runtime.batch import TAIL_ROWS
from adaserve.runtime.joined import Joined
from adaserve.runtime.passes import Passes
from adaserve.runtime.slots import SlotTable
from adaserve.step import Chunk, Limits, PageGrant, Placement, StepPlan


def floor(bench: Bench) -> dict[str, Any]:
    """A device copy, and the products alone."""
    copy = _copy_bandwidth()
    print(f"  copy {copy:.2f} TB/s")
    products = {}
    for rows in (1, 8, 16, 32, 64, 96, 128, 192, 256) if bench.full else (1, 64):
        inputs = {k: torch.randn(rows, k, device="cuda", dtype=bench.target.dtype) for k in _depths(bench.target)}
        graph = graph_of(partial(_products, bench.target, inputs))
        products[rows] = milliseconds(graph.replay, 10)
        print(f"  products, {rows:4} rows: {products[rows]:7.2f} ms")
    return {"copy_tb_s": copy, "products_ms": products}


def _copy_bandwidth() -> float:
    """TB/s, bytes read and written."""
    a = torch.randn(1 << 30, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.numel() * 4 / milliseconds(partial(b.copy_, a), 5) / 1e9


def _depths(decoder: Decoder) -> set[int]:
    layer = decoder.layers[0]
    return {linear.in_features for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)}


def _products(decoder: Decoder, inputs: dict[int, torch.Tensor]) -> None:
    for layer in decoder.layers:
        for linear in (layer.qkv, layer.output, layer.gate_up, layer.down):
            linear(inputs[linear.in_features])


@torch.inference_mode()
def passes(bench: Bench) -> dict[str, Any]:
    """The target's pass over the known tokens' last rows, by rows."""
    context = 128
    reader = Reader(bench.target, [bench.prompt(slot, context) for slot in range(64)])
    reader([Chunk(s, 0, context) for s in range(64)])
    found, queued, kernels = {}, {}, []
    for rows in (1, 2, 8, 16, 32, 64, 96, 128, 192, 256) if bench.full else (1, 64, 192):
        n = min(rows, 64)
        chunks = [Chunk(s, context - rows // n, rows // n) for s in range(n)]
        run = partial(_whole_pass, bench.target, reader.passes, reader.rows(chunks), context)
        found[rows], queued[rows] = milliseconds(run, 10), milliseconds(run, 10, queued=True)
        print(f"  pass, {rows:4} rows: {found[rows]:7.2f} ms, queued {queued[rows]:7.2f} ms")
        if rows in (1, 64):
            kernels = by_kernel(run)
            print_kernels(kernels)
    return {
        "pass_ms": found,
        "pass_queued_ms": queued,
        "pass_64_kernels": [(name[:40], ms, count) for name, ms, count in kernels[:12]],
    }


def _whole_pass(decoder: Decoder, runner: Passes, rows: Joined, longest: int) -> None:
    decoder.logits(runner(rows, longest))


@torch.inference_mode()
def draft(bench: Bench) -> dict[str, Any]:
    """One draft step: the difference between six and two steps, over four."""
    found: dict[str, Any] = {}
    for n, width, context in ((64, 3, 256), (64, 3, 1000), (1, 3, 256)):
        name = f"{n} x {width}, context {context}"
        found[name] = _draft_step(bench, n, width, context)
        step, queued, first = (found[name][key] for key in ("step_ms", "queued_ms", "first_ms"))
        print(f"  draft, {name}: {step:.3f} ms a step, queued {queued:.3f}, first {first:.3f} ms")
        print_kernels(found[name].pop("kernels"))
        free_memory()
    return {"draft": found}


def _draft_step(bench: Bench, n: int, width: int, context: int) -> dict[str, Any]:
    each = -(-(context + TAIL_ROWS) // PAGE)
    executor = make_executor(Models(bench.target, bench.draft), Sizes(n, context + TAIL_ROWS, n * each, PAGE), WallClock())
    fresh = tuple(range(n))
    greedy = SamplingParams(temperature=0.0)
    reading = StepPlan(
        released=(),
        placed=tuple(Placement(s, bench.prompt(s, context), context, greedy, 0, 0, ()) for s in fresh),
        grants=tuple(PageGrant(s, 0, tuple(range(s * each, s * each + each))) for s in fresh),
        decoding=fresh,
        need=(0.0,) * n,
        room=(10,) * n,
        temperature=(0.0,) * n,
        drafting=(None,) * n,
        chunks=(),
        catch_up=tuple(Chunk(s, 0, context - 1) for s in fresh),
        limits=Limits(n, 8, 1),
        depth=0,
        width=1,
        predicted=0.0,
    )
    executor.speculate(reading)
    roots = tuple(Chunk(s, context - 1, 1, draws=True) for s in fresh)
    drafting = replace(reading, placed=(), grants=(), catch_up=(), drafting=roots, width=width)
    run = {depth: partial(executor.speculate, replace(drafting, depth=depth)) for depth in (1, 2, 6)}
    at = {depth: milliseconds(run[depth], 10) for depth in run}
    after = {depth: milliseconds(run[depth], 10, queued=True) for depth in (2, 6)}
    return {
        "step_ms": (at[6] - at[2]) / 4,
        "queued_ms": (after[6] - after[2]) / 4,
        "first_ms": at[1],
        "kernels": by_kernel(run[6]),
    }


@torch.inference_mode()
def long(bench: Bench) -> dict[str, Any]:
    """Attention over long contexts, and over such as are usual."""
    found = {}
    for n, context, rows in ((32, 7000, 1), (32, 7000, 4), (64, 128, 1), (64, 350, 3), (64, 1000, 3), (1, 400, 1), (1, 400, 9)):
        name = f"{n} x {context}, {rows} rows each"
        found[name] = _attention(bench.target.config, n, context, rows)
        print(f"  {name}: {found[name]}")
        free_memory()
    return {"long": found}


def _attention(config: ModelConfig, n: int, context: int, rows: int) -> dict[str, Any]:
    each = -(-(context + 8) // PAGE)
    table = SlotTable(slots=n, length=context + 8, page_size=PAGE, device="cuda", spare_page=n * each)
    table.pages[:n, :each] = torch.randperm(n * each).view(n, each).cuda()
    table.known[:] = context
    tail_start = (n * each + 1) * PAGE
    layers = 4 if n * context > 100_000 else 16  # more than the cache holds, so that keys come from memory
    shape = (layers, tail_start + (n + 1) * TAIL_ROWS, config.kv_heads, config.head_dim)
    keys, values = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    batch = table.known_batch([Chunk(s, context - rows, rows) for s in range(n)], tail_start)
    tiles = tile(batch, group=config.heads // config.kv_heads, kv_heads=config.kv_heads, longest=context)
    q = torch.randn(n * rows, config.heads, config.head_dim, device="cuda", dtype=torch.bfloat16)

    def run() -> None:
        for layer in range(layers):
            attend(q, keys[layer], values[layer], replace(batch, tiles=tiles), config.head_dim**-0.5)

    ms = milliseconds(graph_of(run).replay) / layers
    bandwidth = 2 * n * context * config.kv_heads * config.head_dim * 2 / ms / 1e9
    return {"ms_a_layer": ms, "tb_s": bandwidth, "splits": tiles.splits}


def measured(bench: Bench) -> dict[str, Any]:
    """What `adaserve profile` measures."""
    models = Models(bench.target, bench.draft)
    sizes = Sizes(64, 1024, 64 * 65, PAGE)
    executor: DeviceExecutor = make_executor(models, sizes, WallClock())
    profile = measure_profile(models, sizes, executor, "32b", lambda line: print("  " + line, flush=True))
    budgets = {f"stretch {s}": budget_from(profile, 1, verify_stretch=s).verify for s in (1.2, 1.5, 2.0)}
    print("  budgets", budgets)
    return {"profile": profile.to_json(), "budgets": budgets}


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "floor": floor, "pass": passes, "draft": draft, "serve": serve, "long": long, "profile": measured,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--contexts", type=parse_contexts, default="32x7000", help="of section context: requests x prompt tokens")
    args = parser.parse_args()
    sections = SECTIONS | {"context": partial(long_contexts, contexts=args.contexts)}
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "shape": args.shape,
        "draft": args.draft,
    }
    bench = build(args)
    for name in args.only.split(","):
        begin = time.perf_counter()
        try:
            found |= sections[name](bench)
        except Exception as error:  # the other sections may still tell something
            traceback.print_exc(file=sys.stdout)
            found[f"{name} failed"] = repr(error)[:300]
        free_memory()
        print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)
    print(json.dumps(found))
    return 1 if any(key.endswith("failed") for key in found) else 0


if __name__ == "__main__":
    sys.exit(main())
