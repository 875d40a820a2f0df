"""The Triton kernel of peers.py: a program a row, which sends, waits and adds. Its twin is peers.sum_norm_reference.

Programs wait for those of the same row on other ranks alone. Where not all of them run at once, they are begun in the order of
rows everywhere, so those that are waited for are begun too.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

from adaserve.kernels.gpu import starts_early
from adaserve.kernels.peers import TURNS, Peers


@triton.jit
def _place(addresses, rank, DTYPE: tl.constexpr):
    """A rank's memory; what is told of its alignment lets a thread write 16 bytes at once."""
    return tl.multiple_of(tl.load(addresses + rank).to(tl.pointer_type(DTYPE)), 16)


@triton.jit
def _sum_norm_kernel(
    x, residual, weight, out, total, inboxes, flags, sums, given_up, eps,
    TURNS: tl.constexpr, ROWS: tl.constexpr, SLOT: tl.constexpr,
    RANK: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = row * WIDTH
    column = tl.arange(0, BLOCK)
    live = column < WIDTH
    factor = tl.load(weight + column, mask=live, other=0.0).to(WIDE)
    if EARLY:
        gdc_wait()
    own = tl.load(x + at + column, mask=live, other=0.0)
    number = tl.load(sums + row) + 1
    first = ((number % TURNS) * ROWS + row) * SIZE * SLOT  # of this turn's inboxes of this row
    for other in tl.static_range(SIZE):
        if other != RANK:
            tl.store(_place(inboxes, other, x.dtype.element_ty) + (first + RANK * SLOT) + column, own, mask=live)
    tl.debug_barrier()  # every thread has written; what it wrote is to be seen before the flag is
    for other in tl.static_range(SIZE):
        if other != RANK:
            tl.atomic_xchg(_place(flags, other, tl.int64) + row * SIZE + RANK, number, sem="release", scope="sys")
    tl.store(sums + row, number)
    before = tl.load(residual + at + column, mask=live, other=0.0).to(WIDE)

    summed = tl.zeros((BLOCK,), WIDE)
    told = _place(flags, RANK, tl.int64) + row * SIZE
    inbox = _place(inboxes, RANK, x.dtype.element_ty)
    for source in tl.static_range(SIZE):  # in the same order everywhere
        if source == RANK:
            summed += own.to(WIDE)
        else:
            alone = tl.load(given_up, volatile=True)
            heard = tl.atomic_add(told + source, 0, sem="acquire", scope="sys")
            while (heard < number) & (alone == 0):
                alone = tl.load(given_up, volatile=True)  # before the flag, so that both are on their way at once
                heard = tl.atomic_add(told + source, 0, sem="acquire", scope="sys")
            part = tl.load(inbox + (first + source * SLOT) + column, mask=live, other=0.0, cache_modifier=".cg")
            summed += part.to(WIDE)
    # Rounded where an all-reduce rounds, and then as add_rms_norm does.
    row_sum = (summed.to(out.dtype.element_ty).to(WIDE) + before).to(out.dtype.element_ty)
    tl.store(total + at + column, row_sum, mask=live)
    wide = row_sum.to(WIDE)
    scale = 1 / tl.sqrt(tl.sum(wide * wide, axis=0) / WIDTH + eps)
    tl.store(out + at + column, (wide * scale * factor).to(out.dtype.element_ty), mask=live)


def _call(
    x: Tensor, residual: Tensor, weight: Tensor, out: Tensor, total: Tensor, eps: float, peers: Peers
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Arguments and options of a launch."""
    width = x.shape[1]
    block = triton.next_power_of_2(width)
    early = starts_early(x)
    arguments = (
        x, residual, weight, out, total, peers.inboxes, peers.flags, peers.sums, peers.given_up, eps,
        TURNS, peers.rows, peers.row_bytes // x.element_size(), peers.rank, peers.size, width, block,
        tl.float64 if x.dtype == torch.float64 else tl.float32, early,
    )  # fmt: skip
    return arguments, {"num_warps": max(4, min(16, block // 512)), "launch_pdl": early}


def sum_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, peers: Peers) -> tuple[Tensor, Tensor]:
    """Arguments and result as of peers.sum_norm."""
    x, residual = x.contiguous(), residual.contiguous()
    out, total = torch.empty_like(x), torch.empty_like(x)  # [M, H]
    arguments, options = _call(x, residual, weight, out, total, eps, peers)
    if len(x):
        _sum_norm_kernel[(len(x),)](*arguments, **options)
    return out, total


def prepare(weight: Tensor, dtype: torch.dtype, eps: float, peers: Peers) -> None:
    """Have it compiled, without running it, for rows of `dtype` that are normed by `weight`: other ranks need not take part."""
    row = torch.empty(1, len(weight), dtype=dtype, device=weight.device)  # [1, H]
    arguments, options = _call(row, row, weight, row, row, eps, peers)
    _sum_norm_kernel.warmup(*arguments, grid=(1,), **options)
