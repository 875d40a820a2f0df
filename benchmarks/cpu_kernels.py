"""How fast the CPU kernels are, beside torch and beside what the machine could do. Random weights of a chosen model shape.

The physics of one pass over a decoder's layers:

    bytes  = parameters * 2 (bfloat16) or 0.625 (blocks of 4 bits), read once however many rows there are
                                                                                   -> seconds >= bytes / memory bandwidth
    FLOPs  = parameters * 2 * rows; a lane and instruction do 2 (float32), 4 (bfloat16 pairs) or 8 of them (bytes; 8 instructions
             and 3 more for a block's scale and offset)                            -> seconds >= FLOPs / peak
    KV     = requests * context * 2 * KV heads * head dim * bytes of the pool's dtype, read once per layer by a request's rows

A few rows are bound by bandwidth, so that 8 rows cost little more than 1: that is what speculation lives on. Then the peak takes
over. Products are measured on every path that the machine has, of blocks (Q4_1, the head Q8_0) and of bfloat16. SmolLM2: 106 M
parameters in its layers (66 MB in Q4_1, 212 MB in bfloat16), 28 M in its head (30 MB in Q8_0). On a Zen 4 core, one 512-bit
product of either kind a cycle: 190 GFLOP/s of bfloat16 pairs or 300 of bytes at 3.2 GHz, and 32 GB/s read by one core alone.

Every line is the minimum and the median of `--repeats` runs; torch's own products alternate with ours, so that a busy machine
disturbs both. The last line is one JSON object.

    python benchmarks/cpu_kernels.py [--rows 1,4,8,32] [--quick]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from adaserve.attention.paged import attend
from adaserve.kernels.gate import silu_mul
from adaserve.kernels.linear import Linear, Path, available_paths, products_status
from adaserve.kernels.native import native_status, use_threads
from adaserve.kernels.norm import add_rms_norm
from adaserve.kernels.quantized import BLOCK, QuantizedWeight
from adaserve.kernels.rotary import RotaryTable, rotate_and_store
from adaserve.kernels.top import top_tokens
from adaserve.runtime.batch import TAIL_ROWS, ForwardBatch

LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 30, 576, 1536, 9, 3, 64, 49152  # SmolLM2-135M
SHAPES = [  # [N, K]
    ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
    (HIDDEN, HIDDEN),
    (2 * INTERMEDIATE, HIDDEN),
    (HIDDEN, INTERMEDIATE),
]
LAYER_PARAMETERS = sum(outputs * depth for outputs, depth in SHAPES)
PAGE = 16


def times(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every run, in turn, `repeats` times after one warm-up."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            found[name].append(1e3 * (time.perf_counter() - begin))
    return found


def show(label: str, found: dict[str, list[float]], note: str = "") -> dict[str, float]:
    columns = "  ".join(f"{name} {min(ms):8.3f} / {statistics.median(ms):8.3f}" for name, ms in found.items())
    print(f"{label:34s} {columns}  {note}", flush=True)
    return {name: round(min(ms), 4) for name, ms in found.items()}


def blocks(outputs: int, depth: int, bits: int) -> QuantizedWeight:
    """Random blocks: of 4 bits with offsets, as Q4_1, or of 8 without, as Q8_0."""
    scale = torch.rand(outputs, depth // BLOCK).half() * 0.01
    if bits == 8:
        return QuantizedWeight(torch.randint(-127, 128, (outputs, depth), dtype=torch.int8), scale, None)
    return QuantizedWeight(torch.randint(0, 16, (outputs, depth), dtype=torch.uint8), scale, scale * -8)


Layers = list[list[Linear]]


def products(rows: int, repeats: int, ours: dict[str, Layers], torchs: dict[str, list[list[Tensor]]]) -> dict[str, float]:
    """All matrix products of one pass through the layers, by every path of ours and by torch."""
    xs = [torch.randn(rows, depth) for _, depth in SHAPES]

    def native(layers: Layers) -> Callable[[], None]:
        def run() -> None:
            for layer in layers:
                for linear, x in zip(layer, xs, strict=True):
                    linear(x)

        return run

    def plain(layers: list[list[Tensor]]) -> Callable[[], None]:
        inputs = [x.to(layers[0][0].dtype) for x in xs]

        def run() -> None:
            for layer in layers:
                for weight, x in zip(layer, inputs, strict=True):
                    functional.linear(x, weight)

        return run

    runs: dict[str, Callable[[], object]] = {name: native(layers) for name, layers in ours.items()}
    runs |= {name: plain(layers) for name, layers in torchs.items() if rows <= 32}
    found = times(runs, repeats)
    fastest = min(min(found[name]) for name in ours) / 1e3
    flops = 2 * rows * LAYERS * LAYER_PARAMETERS
    return show(f"products of {LAYERS} layers, {rows} rows", found, f"{flops / fastest / 1e9:5.0f} GFLOP/s")


def requests(count: int, nodes: int, context: int) -> ForwardBatch:
    """`count` requests with `context` known tokens, the last one in a row, and a chain of `nodes` behind it."""
    per_slot = -(-context // PAGE)
    pages = torch.randperm(count * per_slot).view(count, per_slot)  # [slots, P]
    depth = torch.arange(nodes + 1).repeat(count)  # [B]
    slot = torch.arange(count).repeat_interleave(nodes + 1)  # [B]
    tail_start = count * per_slot * PAGE
    last = pages[slot, (context - 1) // PAGE] * PAGE + (context - 1) % PAGE
    return ForwardBatch(
        token=torch.zeros_like(depth),
        position=context - 1 + depth,
        prefix=torch.full_like(depth, context),
        mask=(1 << depth) - 1,
        dest=torch.where(depth == 0, last, tail_start + slot * TAIL_ROWS + depth - 1),
        start=torch.arange(count + 1) * (nodes + 1),
        slot=torch.arange(count),
        pages=pages,
        page_size=PAGE,
        tail_start=tail_start,
    )


def attention(count: int, nodes: int, context: int, repeats: int) -> dict[str, float]:
    """Attention of all layers, each with a pool of its own, as in a pass."""
    batch = requests(count, nodes, context)
    rows = batch.tail_start + count * TAIL_ROWS
    q = torch.randn(count * (nodes + 1), HEADS, HEAD_DIM)
    wide = [torch.randn(2, rows, KV_HEADS, HEAD_DIM) for _ in range(LAYERS)]
    narrow = [pool.bfloat16() for pool in wide]

    def run(pools: list[Tensor], path: Path) -> Callable[[], None]:
        def go() -> None:
            for keys, values in pools:
                attend(q, keys, values, batch, HEAD_DIM**-0.5, path=path)

        return go

    paths = [path for path in (Path.DOT, Path.FMA) if path in available_paths()]
    runs: dict[str, Callable[[], object]] = {f"{path.value}, bf16 pool": run(narrow, path) for path in paths}
    found = times(runs | {"fma, fp32 pool": run(wide, Path.FMA)}, repeats)
    size = 2 * 2 * count * context * KV_HEADS * HEAD_DIM * LAYERS  # bytes in bfloat16
    note = f"{size / 1e6:.0f} / {2 * size / 1e6:.0f} MB"
    return show(f"attention, {count} x {nodes + 1} rows at {context}", found, note)


def small(rows: int, repeats: int) -> dict[str, float]:
    """What stands between the products, for all layers."""
    batch = requests(rows, 0, 64)
    hidden, weight = torch.randn(rows, HIDDEN), torch.ones(HIDDEN)
    gate_up, qkv = torch.randn(rows, SHAPES[2][0]), torch.randn(rows, SHAPES[0][0])
    table = RotaryTable(torch.ones(64, HEAD_DIM // 2), torch.zeros(64, HEAD_DIM // 2))
    keys, values = (torch.zeros(batch.tail_start + rows * TAIL_ROWS, KV_HEADS, HEAD_DIM).bfloat16() for _ in range(2))

    def each(run: Callable[[], object]) -> Callable[[], None]:
        def go() -> None:
            for _ in range(LAYERS):
                run()

        return go

    found = times(
        {
            "2 norms": each(lambda: [add_rms_norm(hidden, hidden, weight, 1e-5) for _ in range(2)]),
            "gate": each(lambda: silu_mul(gate_up)),
            "rotate": each(lambda: rotate_and_store(qkv, table, batch.position, batch.dest, keys, values, None, None, 1e-5)),
        },
        repeats,
    )
    return show(f"between products, {rows} rows", found)


def head(rows: int, repeats: int, linear: Linear) -> dict[str, float]:
    """The head, and the likeliest tokens of every row."""
    x, warmth = torch.randn(rows, HIDDEN), torch.ones(rows)
    logits = linear(x)
    runs: dict[str, Callable[[], object]] = {
        "head": lambda: linear(x),
        "top 3": lambda: top_tokens(logits, warmth, 3),
        "torch topk + logsumexp": lambda: (logits.topk(3), logits.logsumexp(-1)),
    }
    return show(f"head and ranking, {rows} rows", times(runs, repeats))


def layer_products(rows: list[int], repeats: int, threads: int) -> dict[int, dict[str, float]]:
    """Products by every path, and by torch with all its threads."""
    narrow = [[torch.randn(*shape).bfloat16() for shape in SHAPES] for _ in range(LAYERS)]
    wide = [[weight.float() for weight in layer] for layer in narrow]
    small = [[blocks(*shape, 4) for shape in SHAPES] for _ in range(LAYERS)]
    ours: dict[str, Layers] = {}
    for path in available_paths():
        ours[f"{path.value}, blocks"] = [[Linear(weight, path=path) for weight in layer] for layer in small]
        if path is not Path.INT8:
            ours[f"{path.value}, bfloat16"] = [[Linear(weight, path=path) for weight in layer] for layer in narrow]
    torch.set_num_threads(threads)
    found = {count: products(count, repeats, ours, {"torch fp32": wide, "torch bf16": narrow}) for count in rows}
    use_threads(threads)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,2,4,8,12,16,32,64,96,128")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="few rows, three repeats")
    arguments = parser.parse_args()
    rows = [int(count) for count in ("1,8,32" if arguments.quick else arguments.rows).split(",")]
    repeats = 3 if arguments.quick else arguments.repeats

    torch.manual_seed(0)
    threads = torch.get_num_threads()
    print(f"native kernels {native_status()}; products: {products_status()}; minimum / median in ms")
    memory = torch.ones(64 << 20)  # 256 MiB
    reading = times({"sum of 268 MB": memory.sum}, repeats)
    bandwidth = memory.nbytes / min(reading["sum of 268 MB"]) / 1e6
    show("memory", reading, f"{bandwidth:5.1f} GB/s")
    del memory

    use_threads(threads)
    report: dict[str, object] = {"bandwidth_gb_s": round(bandwidth, 1), "threads": threads, "products_by": products_status()}
    report["products"] = layer_products(rows, repeats, threads)
    final = Linear(blocks(VOCABULARY, HIDDEN, 8))
    report["head"] = {count: head(count, repeats, final) for count in rows if count <= 96}
    report["between"] = {count: small(count, repeats) for count in rows}
    cases = [(1, 0, 200), (1, 3, 200), (8, 3, 200), (32, 0, 200), (32, 2, 200)]
    report["attention"] = {
        f"{count}x{nodes + 1}@{context}": attention(count, nodes, context, repeats)
        for count, nodes, context in (cases[:3] if arguments.quick else cases)
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
