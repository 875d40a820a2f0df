"""Products with a large model's weights on one GPU: the library beside the kernel for few rows, and ways to divide that kernel.

A product of few rows reads its weights once, so it takes at least their bytes over the memory's bandwidth; how near a kernel
comes depends on how many bytes it keeps under way.

    cublas, lt   torch's two ways to the library
    ours         what `Linear` does: kernels/triton_linear.py for few rows of large weights
    --search     that kernel divided in every way that fits a processor's memory: outputs, rows, depth, stages, warps, parts of K

    python benchmarks/gpu_products.py [--rows 1,16,64,128] [--search]

Weights of one shape rotate through more memory than the cache holds; times are medians of graph replays. Kernels are compiled by
several processes beforehand. The last line is one JSON object.
"""

import argparse
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
import triton
from gpu_timing import graph_of, milliseconds
from torch import Tensor
from torch.nn.functional import linear

from adaserve.kernels.linear import Linear
from adaserve.kernels.triton_linear import _product_kernel, _sum_kernel

SHAPES = {"qkv": (7168, 5120), "output": (5120, 5120), "gate_up": (55296, 5120), "down": (5120, 27648)}
"""[N, K] of a layer of the 32b shape."""
PARTS = {"qkv": (1, 2), "output": (2, 3, 4), "gate_up": (1,), "down": (2, 3, 6)}
LAYERS = 64
ROTATED = 600e6
"""Bytes of weights of one shape."""
SHARED = 225_000
"""Bytes of shared memory of a program."""


@dataclass(frozen=True)
class Division:
    """How a product is divided: outputs and rows of a tile, its depth, stages ahead, warps, parts of K."""

    n: int
    m: int
    k: int
    stages: int
    warps: int
    parts: int = 1


def product(weight: Tensor, x: Tensor, by: Division) -> Tensor:
    """x [M, K] times weight [N, K] -> [M, N], divided in any way."""
    (rows, depth), outputs = x.shape, weight.shape[0]
    out = x.new_empty(rows, outputs)
    sums = out if by.parts == 1 else torch.empty(by.parts, rows, outputs, device=x.device)
    share = -(-depth // by.parts // by.k) * by.k
    _product_kernel[(outputs // by.n, by.parts)](
        weight, x, sums, rows, outputs, depth, share, by.n, by.m, by.k, True,
        num_warps=by.warps, num_stages=by.stages, launch_pdl=True,
    )  # fmt: skip
    if by.parts > 1:
        _sum_kernel[(triton.cdiv(rows * outputs, 2048),)](sums, out, rows * outputs, by.parts, 2048, True, launch_pdl=True)
    return out


def divisions(rows: int) -> Iterator[Division]:
    """All that may be worth a try for so many rows."""
    m = max(16, triton.next_power_of_2(rows))
    for n, k, stages, warps in itertools.product((64, 128), (64, 128, 256), (3, 4, 6, 8), (4, 8)):
        if 60_000 <= stages * (n + m) * k * 2 <= SHARED and n * m <= 128 * 128 and (warps == 4 or n > 64):
            yield Division(n, m, k, stages, warps)


def compile_some(chosen: list[Division]) -> int:
    """Fill the compiler's cache; returns how many it took."""
    done = 0
    for by in chosen:
        weight, x = (torch.zeros(size, 16 * by.k, device="cuda", dtype=torch.bfloat16) for size in (2 * by.n, by.m))
        try:
            for parts in (1, 2):  # results in bfloat16 and in float32
                product(weight, x, replace(by, parts=parts))
            torch.cuda.synchronize()
            done += 1
        except Exception as error:  # too large for the processor after all
            print("  not compiled:", by, repr(error)[:100], flush=True)
    return done


def microseconds(weights: list[Tensor], run: Callable[[Tensor], object]) -> float:
    """Of one product; weights rotate."""

    def all_of_them() -> None:
        for weight in weights:
            run(weight)

    return milliseconds(graph_of(all_of_them).replay, 7, 2) / len(weights) * 1e3


def by_library(weights: list[Tensor], x: Tensor, library: str) -> float:
    """Microseconds by one of the libraries."""
    before = torch.backends.cuda.preferred_blas_library(library)
    try:
        return microseconds(weights, partial(linear, x))
    finally:
        torch.backends.cuda.preferred_blas_library(before)


def searched(weights: list[Tensor], x: Tensor, parts: tuple[int, ...]) -> list[tuple[float, Division]]:
    """Microseconds of all divisions that compute the right thing, the fastest first."""
    expected = linear(x, weights[0]).float()
    found = []
    for by, count in itertools.product(divisions(len(x)), parts):
        by = replace(by, parts=count)
        try:
            error = (product(weights[0], x, by).float() - expected).norm() / expected.norm()
            if error < 0.01:
                found.append((microseconds(weights, lambda weight, by=by: product(weight, x, by)), by))
            else:
                print("  wrong:", by, float(error))
        except Exception as problem:
            print("  failed:", by, repr(problem)[:100])
    return sorted(found, key=lambda pair: pair[0])


def measure(name: str, counts: list[int], search: bool) -> dict[str, dict[str, float]]:
    """Microseconds of one shape's product, by rows."""
    outputs, depth = SHAPES[name]
    copies = max(1, round(ROTATED / (outputs * depth * 2)))
    weights = [torch.randn(outputs, depth, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(copies)]
    wrapped = {weight.data_ptr(): Linear(weight) for weight in weights}
    results = {}
    for rows in counts:
        x = torch.randn(rows, depth, device="cuda", dtype=torch.bfloat16)
        times = {library: by_library(weights, x, library) for library in ("cublas", "cublaslt")}
        times["ours"] = microseconds(weights, lambda weight, x=x: wrapped[weight.data_ptr()](x))
        if search and rows <= 128:
            found = searched(weights, x, PARTS[name])
            times["searched"] = found[0][0]
            print(*(f"    {us:7.1f} us {by}" for us, by in found[:4]), sep="\n")
        tb_s = {k: outputs * depth * 2 / us / 1e6 for k, us in times.items()}
        line = ", ".join(f"{k} {us:6.1f} us ({tb_s[k]:.2f} TB/s)" for k, us in times.items())
        print(f"  {name:8} {rows:4} rows: {line}", flush=True)
        results[str(rows)] = times
    return results


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,8,16,24,32,48,64,128,192,256")
    parser.add_argument("--search", action="store_true")
    args = parser.parse_args()
    counts = [int(rows) for rows in args.rows.split(",")]
    if args.search:
        every = sorted({by for rows in counts if rows <= 128 for by in divisions(rows)}, key=str)
        workers = min(12, os.cpu_count() or 1)
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            done = sum(pool.map(compile_some, [every[i :: 4 * workers] for i in range(4 * workers)]))
        print(f"{done} of {len(every)} kernels compiled", flush=True)
    found = {name: measure(name, counts, args.search) for name in SHAPES}
    totals = {}
    for rows in map(str, counts):
        ways = found["qkv"][rows]
        totals[rows] = {way: sum(found[name][rows][way] for name in SHAPES) * LAYERS / 1e3 for way in ways}
        print(f"{rows:>4} rows, {LAYERS} layers:", ", ".join(f"{way} {ms:.2f} ms" for way, ms in totals[rows].items()))
    print(json.dumps({"device": torch.cuda.get_device_name(), "us": found, "layers_ms": totals}))


if __name__ == "__main__":
    main()
