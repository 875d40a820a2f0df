"""The sum of what several GPUs have computed, added to the residual stream and normalised, in one kernel.

NCCL's all-reduce of some rows takes two or three times as long as the rows take through NVLink, and the norm after it another
kernel. Here every GPU writes its summand where each other one reads it, says so, waits until it has been told the same, and adds
what it has got.

    rank 0   x0 ──┬─ to rank 1's inbox ─ flag ─┐ wait for rank 1's flag ─ x0 + x1 (+) residual ─ norm
    rank 1   x1 ──┴─ to rank 0's inbox ─ flag ─┘ wait for rank 0's flag ─ x0 + x1 (+) residual ─ norm

Row by row, so nobody waits for more than a row. Summands are added in the order of ranks: all ranks have the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaserve.kernels.norm import add_rms_norm_reference

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
TURNS = 2
"""Inboxes of a row, taken in turns: a rank may be one sum ahead of another, which still reads the last one's summand."""
WORD = 8
"""Bytes of a flag."""
ALIGNED = 128
"""Inboxes begin at multiples of so many bytes."""


@dataclass(frozen=True)
class Peers:
    """Memory of every rank that all of them can reach.

    rank, size  this one among how many
    rows        the most rows of a sum
    row_bytes   the most bytes of a row, a multiple of 16
    inboxes     [size] int64, addresses as this rank sees them: of each rank's inboxes  [TURNS, rows, size, row_bytes]
    flags       [size] int64, likewise: of each rank's flags  [rows, size] int64, the last sum that a row has of a rank
    sums        [rows] int64, this rank's own: how many sums a row has taken part in
    given_up    [1] int64, this rank's own: not 0 once nobody is to be waited for any more; sums are wrong from then on
    held        what the addresses lead to, held so that it stays
    letter      the word that is copied to `given_up`, in pinned memory, and the stream that it goes by; None on a CPU. Made
                beforehand: while a kernel waits nothing may be asked for that waits for kernels
    """

    rank: int
    size: int
    rows: int
    row_bytes: int
    inboxes: Tensor
    flags: Tensor
    sums: Tensor
    given_up: Tensor
    held: tuple[object, ...]
    letter: tuple[Tensor, torch.cuda.Stream] | None

    def take(self, x: Tensor) -> bool:
        """Whether there is room for a sum of these rows [M, H]."""
        return x.dtype in DTYPES and len(x) <= self.rows and x.shape[1] * x.element_size() <= self.row_bytes

    def give_up(self) -> None:
        """Let kernels that wait go on, and those to come not wait. May be called on another thread, while they run.

        A copy, which needs none of the processors that the waiting kernels hold.
        """
        assert self.letter is not None, "on a CPU nobody waits"
        word, stream = self.letter
        with torch.cuda.stream(stream):
            self.given_up.copy_(word, non_blocking=True)

    @staticmethod
    def memory(size: int, rows: int, row_bytes: int) -> tuple[int, int]:
        """Bytes of a rank's flags and of its inboxes, which follow them; both are multiples of what a thread writes at once."""
        return -(-rows * size * WORD // ALIGNED) * ALIGNED, TURNS * rows * size * row_bytes

    @staticmethod
    def letter_to(device: torch.device) -> tuple[Tensor, torch.cuda.Stream]:
        """What `letter` is on a GPU; of its own priority, the stream is none that graphs are captured on."""
        return torch.ones(1, dtype=torch.int64, pin_memory=True), torch.cuda.Stream(device, priority=-1)


def sum_norm_reference(parts: Sequence[Tensor], residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The plain torch twin of `sum_norm`, where one process has all summands, by rank."""
    wide = torch.float64 if residual.dtype == torch.float64 else torch.float32
    total = torch.zeros_like(residual, dtype=wide)  # [M, H]
    for part in parts:
        total += part
    return add_rms_norm_reference(total.to(residual.dtype), residual, weight, eps)


def sum_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, peers: Peers) -> tuple[Tensor, Tensor]:
    """All ranks' x summed, added to the residual stream and normalised: x, residual [M, H] -> (normed, sum + residual).

    All ranks call it in the same order with the same rows, which `peers` takes, each on one stream.
    """
    from adaserve.kernels import triton_peers

    return triton_peers.sum_norm(x, residual, weight, eps, peers)


def prepare(weight: Tensor, dtype: torch.dtype, eps: float, peers: Peers) -> None:
    """Have `sum_norm` compiled for rows of `dtype` that are normed by `weight` [H]; no other rank takes part."""
    from adaserve.kernels import triton_peers

    triton_peers.prepare(weight, dtype, eps, peers)
