"""The gradient of distillation with respect to the draft's logits as one Triton kernel; its twin is `gradient.pull_rows`.

A row of logits is longer than what a program can hold, so it is read twice: once for maxima and sums, once to write the
gradient where the draft's logits were. That is five passes over memory where torch's operations, one by one, are twenty.
Arithmetic is float32, whatever the tensors hold. Imported only where there is a GPU, or Triton's interpreter in the tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def _pull_kernel(student, teacher, distance, width, greedy, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    highest, total, top, total_top, best = float("-inf"), 0.0, float("-inf"), 0.0, 0
    for start in range(0, width, BLOCK):
        live = start + column < width
        q = tl.load(student + at + start + column, mask=live, other=float("-inf")).to(tl.float32)
        p = tl.load(teacher + at + start + column, mask=live, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(q, axis=0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(q - higher), axis=0)
        highest = higher
        here = tl.max(p, axis=0)
        best = tl.where(here > top, start + tl.argmax(p, axis=0), best)  # the first of equals
        higher = tl.maximum(top, here)
        total_top = total_top * tl.exp(top - higher) + tl.sum(tl.exp(p - higher), axis=0)
        top = higher
    apart = 0.0
    for start in range(0, width, BLOCK):
        live = start + column < width
        q = tl.load(student + at + start + column, mask=live, other=float("-inf")).to(tl.float32)
        p = tl.load(teacher + at + start + column, mask=live, other=float("-inf")).to(tl.float32)
        q = tl.exp(q - highest) / total
        p = tl.exp(p - top) / total_top
        apart += tl.sum(tl.abs(q - p), axis=0)
        pull = q - (1 - greedy) * p - tl.where(start + column == best, greedy, 0.0)
        tl.store(student + at + start + column, pull.to(student.dtype.element_ty), mask=live)
    tl.store(distance + tl.program_id(0), apart / 2)


def pull_rows(student: Tensor, teacher: Tensor, greedy: float) -> Tensor:
    """See gradient.pull_rows. student, teacher: contiguous logits [c, V]."""
    rows, width = student.shape
    distance = torch.empty(rows, dtype=torch.float32, device=student.device)  # [c]
    if rows:
        _pull_kernel[(rows,)](student, teacher, distance, width, greedy, _BLOCK, num_warps=8)
    return distance
