"""What it takes to sum rows over GPUs, add them to the residual stream and normalise: by NCCL and a norm, and by one kernel.

A pass of L layers has 2 L + 1 of these. Times are of one among many in a CUDA graph, as it is in a pass; every rank is a process.
Before, the kernel's result is compared with the sum of what all ranks have, and ranks' bits with each other's.

    python benchmarks/gpu_sums.py --ranks 2 --hidden 4096 8192

The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from adaserve.kernels.norm import add_rms_norm
from adaserve.kernels.peers import sum_norm_reference
from adaserve.parallel.group import TorchGroup, connect
from adaserve.runtime.capture import capture

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
AT_ONCE = 32
"""Sums in a graph."""
REPEATS = 20
EPS = 1e-5

Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def one_after_another(step: Step, x: Tensor, residual: Tensor, weight: Tensor) -> None:
    """As many as a graph has; each reads what the one before it wrote."""
    for _ in range(AT_ONCE):
        x, residual = step(x.clone(), residual, weight)  # NCCL writes to what it is given


def microseconds(step: Step, x: Tensor, residual: Tensor, weight: Tensor) -> float:
    """Of one sum, the copy before it included; the median of some graphs."""
    one_after_another(step, x, residual, weight)
    graph, _ = capture(
        lambda: one_after_another(step, x, residual, weight), torch.cuda.graph_pool_handle(), torch.cuda.Stream(x.device)
    )
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / AT_ONCE)
    return median(times)


def check(group: TorchGroup, x: Tensor, residual: Tensor, weight: Tensor) -> None:
    """Compare the kernel's result with the twin's, and with the other ranks'."""
    parts = group.join(x).chunk(group.size, 1)
    for _ in range(3):  # turns
        found = group.sum_norm(x, residual, weight, EPS)
        for own, expected in zip(found, sum_norm_reference(parts, residual, weight, EPS), strict=True):
            torch.testing.assert_close(own, expected, rtol=1.6e-2, atol=1e-2)
            first, *others = group.join(own).chunk(group.size, 1)
            assert all(torch.equal(first, other) for other in others), "ranks differ"


def measure(group: TorchGroup, hidden: list[int], device: torch.device) -> list[dict[str, float]]:
    """All shapes; all ranks do the same."""

    def by_nccl(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return add_rms_norm(group.sum(x), residual, weight, EPS)

    def by_kernel(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return group.sum_norm(x, residual, weight, EPS)

    def not_at_all(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return add_rms_norm(x, residual, weight, EPS)

    found = []
    for width in hidden:
        for rows in ROWS:
            draw = torch.Generator(device).manual_seed(group.rank)
            x = torch.randn(rows, width, generator=draw, device=device).bfloat16()
            residual = torch.ones(rows, width, device=device, dtype=torch.bfloat16)
            weight = torch.ones(width, device=device, dtype=torch.bfloat16)
            check(group, x, residual, weight)
            steps = {"nccl_us": by_nccl, "norm_alone_us": not_at_all}
            if group.in_one_kernel(x):  # else it would be NCCL again
                steps["kernel_us"] = by_kernel
            times = {name: microseconds(step, x, residual, weight) for name, step in steps.items()}
            found.append({"hidden": width, "rows": rows, **times})
            if group.rank == 0:
                told = ", ".join(f"{name} {time:.1f}" for name, time in times.items())
                print(f"{rows:>5} rows of {width:>6}: {told}", file=sys.stderr, flush=True)
    return found


def be_rank(rank: int, args: argparse.Namespace, folder: Path) -> None:
    """One process's part."""
    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    group = connect(folder, rank=rank, size=args.ranks, device=device, timeout=120)
    found = measure(group, args.hidden, device)
    if rank == 0:
        print(json.dumps({"device": torch.cuda.get_device_name(), "ranks": args.ranks, "sums": found}), flush=True)
    torch.cuda.synchronize()
    os._exit(0)  # NCCL's end may wait for ever


def main() -> None:
    """Start the ranks, or be one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--hidden", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        be_rank(args.rank, args, args.folder)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--ranks", str(args.ranks), "--folder", folder, "--hidden", *map(str, args.hidden)]
        ranks = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(args.ranks)]
        sys.exit(any([rank.wait() for rank in ranks]))


if __name__ == "__main__":
    main()
