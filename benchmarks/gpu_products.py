"""Products of few rows with a large model's weights on one GPU: the library beside Triton kernels of many shapes.

Such a product reads its weights once, so it can be no faster than their bytes over the memory's bandwidth; how near a kernel
comes depends on how many bytes it keeps under way. Each candidate computes out^T = W x^T: tiles of W are the tall operand, the rows
are the wide one.

    tile    BLOCK_N outputs x BLOCK_M rows, BLOCK_K deep, so many stages ahead, so many warps
    split   K divided among programs, whose float32 sums a second kernel adds

    python benchmarks/gpu_products.py [--rows 1,64,128,192,256] [--quick]

Weights of one shape rotate through more memory than the cache holds; times are medians of graph replays. The last line is one
JSON object.
"""

import argparse
import itertools
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
import triton
import triton.language as tl
from gpu_timing import graph_of, milliseconds
from triton.tools.tensor_descriptor import TensorDescriptor

SHAPES = {"qkv": (7168, 5120), "output": (5120, 5120), "gate_up": (55296, 5120), "down": (5120, 27648)}
"""[N, K] of the 32b shape's layer."""
ROTATED = 600e6
"""Bytes of weights of one shape."""


@dataclass(frozen=True)
class Tile:
    """How a product is divided."""

    n: int
    m: int
    k: int
    stages: int
    warps: int
    split: int = 1
    tma: bool = False


@triton.jit
def _product(w, x, out, M, N, K, share, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr):
    n0 = tl.program_id(0) * BN
    m0 = tl.program_id(1) * BM
    part = tl.program_id(2)
    n = n0 + tl.arange(0, BN)
    m = m0 + tl.arange(0, BM)
    kk = tl.arange(0, BK)
    acc = tl.zeros((BN, BM), tl.float32)
    begin = part * share
    end = tl.minimum(begin + share, K)
    if TMA:
        for k0 in range(begin, end, BK):
            a = w.load([n0, k0])
            b = x.load([m0, k0])
            acc = tl.dot(a, b.T, acc)
    else:
        at = w + n.to(tl.int64)[:, None] * K + kk[None, :]
        of = x + m[None, :] * K + kk[:, None]
        live = m[None, :] < M
        for k0 in range(begin, end, BK):
            a = tl.load(at + k0)
            b = tl.load(of + k0, mask=live, other=0.0)
            acc = tl.dot(a, b, acc)
    place = out + (part * M + m[None, :]) * N + n[:, None]
    tl.store(place, acc.to(out.dtype.element_ty), mask=m[None, :] < M)


@triton.jit
def _sum(parts, out, size, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = at < size
    total = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(SPLIT):
        total += tl.load(parts + part * size + at, mask=live, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=live)


def product(w: torch.Tensor, x: torch.Tensor, tile: Tile) -> torch.Tensor:
    """x [M, K] times w [N, K] -> [M, N]."""
    (rows, depth), outputs = x.shape, w.shape[0]
    out = x.new_empty(rows, outputs)
    parts = out if tile.split == 1 else torch.empty(tile.split, rows, outputs, device=x.device)
    share = triton.cdiv(triton.cdiv(depth, tile.split), tile.k) * tile.k
    grid = outputs // tile.n, triton.cdiv(rows, tile.m), tile.split
    a, b = (TensorDescriptor.from_tensor(w, [tile.n, tile.k]), TensorDescriptor.from_tensor(x, [tile.m, tile.k])) if tile.tma else (w, x)
    _product[grid](
        a, b, parts, rows, outputs, depth, share, tile.n, tile.m, tile.k, tile.tma,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if tile.split > 1:
        _sum[(triton.cdiv(rows * outputs, 2048),)](parts, out, rows * outputs, tile.split, 2048)
    return out


def tiles(rows: int, quick: bool) -> list[Tile]:
    """Candidates for so many rows."""
    found = []
    widths = {1: (16,), 16: (16,), 64: (64,), 128: (128,), 192: (64, 256), 256: (128, 256)}[rows]
    for m, tma in itertools.product(widths, (False, True)):
        for n, k, stages, warps in itertools.product((64, 128, 256), (64, 128, 256), (3, 4, 6), (4, 8)):
            bytes_ = stages * (n + m) * k * 2
            if bytes_ > 225_000 or bytes_ < 60_000 or n * m > 128 * 256 or (warps == 4 and n * m > 128 * 128) or (warps == 8 and n == 64):
                continue
            if quick and k == 256:
                continue
            found.append(Tile(n, m, k, stages, warps, tma=tma))
    return found


def splits(shape: str) -> tuple[int, ...]:
    return {"qkv": (1, 2, 3, 4), "output": (2, 3, 4, 6), "gate_up": (1,), "down": (2, 3, 6)}[shape]


def compile_some(chosen: list[Tile]) -> int:
    """Fill the compiler's cache."""
    done = 0
    for tile in chosen:
        w = torch.zeros(2 * tile.n, 4 * tile.k, device="cuda", dtype=torch.bfloat16)
        x = torch.zeros(16 if tile.m == 16 else tile.m, 4 * tile.k, device="cuda", dtype=torch.bfloat16)
        try:
            for split in (1, 2):  # float32 and bfloat16 results
                product(w, x, replace(tile, split=split))
            torch.cuda.synchronize()
            done += 1
        except Exception as error:
            print("  not compiled:", tile, repr(error)[:120], flush=True)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,64,128,192,256")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    counts = [int(r) for r in args.rows.split(",")]
    everything = sorted({tile for r in counts for tile in tiles(r, args.quick)}, key=str)
    workers = min(12, os.cpu_count() or 1)
    print(f"{len(everything)} kernels", flush=True)
    import multiprocessing

    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        print(sum(pool.map(compile_some, [everything[i :: 4 * workers] for i in range(4 * workers)])), "compiled", flush=True)
    print(torch.cuda.get_device_name(), flush=True)
    results = {}
    for name, (outputs, depth) in SHAPES.items():
        copies = max(1, round(ROTATED / (outputs * depth * 2)))
        weights = [torch.randn(outputs, depth, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(copies)]
        for rows in counts:
            x = torch.randn(rows, depth, device="cuda", dtype=torch.bfloat16)
            floor = outputs * depth * 2 / 4.3e12 * 1e6
            library = timed(weights, partial(_library, x))
            torch.backends.cuda.preferred_blas_library("cublaslt")
            lt = timed(weights, partial(_library, x))
            torch.backends.cuda.preferred_blas_library("cublas")
            reference = _library(x, weights[0]).float()
            found = []
            for tile, split in itertools.product(tiles(rows, args.quick), splits(name)):
                mine = replace(tile, split=split)
                try:
                    error = (product(weights[0], x, mine).float() - reference).norm() / reference.norm()
                    if error > 0.01:
                        print("  wrong:", mine, float(error))
                        continue
                    found.append((timed(weights, lambda w, x=x, mine=mine: product(w, x, mine)), mine))
                except Exception as problem:
                    print("  failed:", mine, repr(problem)[:100])
            found.sort(key=lambda pair: pair[0])
            best = found[:3]
            results[f"{name} {rows}"] = {
                "cublas": library, "cublaslt": lt, "floor": floor, "best": [(us, asdict(tile)) for us, tile in best],
                "best_pointers": next(((us, asdict(t)) for us, t in found if not t.tma), None),
            }  # fmt: skip
            shown = "; ".join(f"{us:.1f} {t.n}x{t.m}x{t.k} s{t.stages} w{t.warps} /{t.split}{' tma' if t.tma else ''}" for us, t in best)
            print(f"{name:8} {rows:4} rows: cublas {library:6.1f} us, lt {lt:6.1f}, at 4.3 TB/s {floor:6.1f} | {shown}", flush=True)
        del weights
        torch.cuda.empty_cache()
    for rows in counts:
        total = {k: sum(results[f"{s} {rows}"][k] for s in SHAPES) * 64 / 1e3 for k in ("cublas", "cublaslt", "floor")}
        total["best"] = sum(results[f"{s} {rows}"]["best"][0][0] for s in SHAPES) * 64 / 1e3
        print(rows, {k: round(v, 2) for k, v in total.items()}, "ms for 64 layers")
    print(json.dumps({"device": torch.cuda.get_device_name(), "results": results}))


def _library(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x, w)


def timed(weights, run) -> float:
    """Microseconds of one product, weights rotating."""

    def all_of_them() -> None:
        for w in weights:
            run(w)

    return milliseconds(graph_of(all_of_them).replay, 5, 1) / len(weights) * 1e3


if __name__ == "__main__":
    main()
