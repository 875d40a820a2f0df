"""One whole step of a beam on a GPU, from the head's scores to the rows of the next pass, in two kernels.

    scores -> (+) noise -> likeliest tokens of every row -> w best extensions of all rows -> where these stand, and their tiles

A step is fifty operations on a few hundred numbers, each of them a launch. Elsewhere it is made of the other kernels' twins, and
nobody calls it but tests: speculation/fused_growth.py.
"""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import pad

from adaserve.kernels.beam import Kept, extend_reference
from adaserve.kernels.gpu import on_gpu
from adaserve.kernels.perturb import perturb_reference
from adaserve.kernels.places import Rows, beam_rows_reference
from adaserve.kernels.top import top_tokens_reference


@dataclass(frozen=True)
class Trees:
    """Trees of n requests in the making; step j fills w of their N columns, from (j - 1) w on.

    token, parent, mask, depth [n, N] int64, path_prob [n, N] float64: as of CandidateTree; mask as of speculation.beam.BeamRows.
    """

    token: Tensor
    parent: Tensor
    mask: Tensor
    depth: Tensor
    path_prob: Tensor

    @staticmethod
    def empty(n: int, columns: int, device: torch.device) -> "Trees":
        """Trees of N columns that hold anything."""
        token, parent, mask, deep = torch.empty(4, n, columns, dtype=torch.int64, device=device).unbind()  # [n, N] each
        return Trees(token, parent, mask, deep, torch.empty(n, columns, dtype=torch.float64, device=device))


@dataclass(frozen=True)
class Scores:
    """The head's scores of r rows of each of n requests, and how they rank.

    logits [n * r, V]; inverse, temperature [n] float64 and key [n] int64, or None: of one depth, as speculation.ranking.Ranked
    has them.
    """

    logits: Tensor
    inverse: Tensor
    temperature: Tensor
    key: Tensor | None


@dataclass(frozen=True)
class Stand:
    """Where the rows of n requests stand: slot [n], known [slots] and tail_start as in kernels.places; height: rows of a tile."""

    slot: Tensor
    known: Tensor
    tail_start: int
    height: int


@dataclass(frozen=True)
class Next:
    """The rows of the next pass, as a ForwardBatch has them.

    rows [n * w] each; start [n + 1] of their groups; tiles [T] each, T = n * ceil(w / height): slot, first row, rows, reach and
    nodes, as of attention.tiling.tiles_reference.
    """

    rows: Rows
    start: Tensor
    tiles: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def beam_step_reference(scores: Scores, room: Tensor, trees: Trees, depth: int, width: int, stand: Stand) -> Next:
    """The plain torch twin of `beam_step`, for any device."""
    n = len(room)
    r = scores.logits.shape[0] // n
    logits = scores.logits
    if scores.key is not None:
        logits = perturb_reference(logits, scores.temperature.repeat_interleave(r), scores.key.repeat_interleave(r))
    token, log_prob = top_tokens_reference(logits, scores.inverse.repeat_interleave(r), width)  # [n * r, w]
    first = (depth - 1) * width
    before, own = slice(first - width, first), slice(first, first + width)
    fields = trees.token, trees.parent, trees.mask, trees.path_prob
    above = None if depth == 1 else Kept(*(x[:, before] for x in fields))
    kept = extend_reference(token.view(n, r, width), log_prob.view(n, r, width), room, above, depth, width)
    for field, found in zip(fields, (kept.token, kept.parent, kept.mask, kept.path_prob), strict=True):
        field[:, own] = found
    trees.depth[:, own] = depth
    tail = torch.arange(first, first + width, device=room.device)  # [w]
    rows, start = beam_rows_reference(stand.known, stand.slot, kept.token, kept.mask, tail, depth, stand.tail_start)
    return Next(rows, start, beam_tiles_reference(stand, kept.mask))


def beam_tiles_reference(stand: Stand, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tiles of w rows of each of n requests: mask [n, w] -> slot, first row, rows, reach and nodes, [T] each."""
    n, width = mask.shape
    height, parts = stand.height, -(-width // stand.height)
    offset = (torch.arange(parts, device=mask.device) * height).repeat(n)  # [T]
    slot = stand.slot.repeat_interleave(parts)
    first = torch.arange(0, n * width, width, device=mask.device).repeat_interleave(parts) + offset
    nodes = pad(mask, (0, parts * height - width)).view(n * parts, height)
    return slot, first, (width - offset).clamp(max=height), stand.known[slot], reduce(torch.bitwise_or, nodes.unbind(1))


def able(vocabulary: int, width: int) -> bool:
    """Whether the kernels take a beam so wide over so many tokens."""
    from adaserve.kernels import triton_beam

    return triton_beam.able(vocabulary, width)


def compile_all(logits: Tensor) -> None:
    """On a GPU, compile all that beams over such scores [1, V] may need, so that no request waits for it."""
    if on_gpu(logits):
        from adaserve.kernels import triton_beam

        triton_beam.compile_all(logits)


def beam_step(scores: Scores, room: Tensor, trees: Trees, depth: int, width: int, stand: Stand) -> Next:
    """Keep the `width` best of all extensions of a beam's rows, fill their columns, and say where they stand.

    room [n]: deepest node of each request. depth: of this step, from 1; scores are of n roots in step 1, then of the n * w rows
    that the last call returned. f and the order of nodes that are nearly alike differ from the twin's by rounding; the scores'
    exponentials are float32. On a GPU it must be `able`.
    """
    if on_gpu(scores.logits):
        from adaserve.kernels import triton_beam

        return triton_beam.beam_step(scores, room, trees, depth, width, stand)
    return beam_step_reference(scores, room, trees, depth, width, stand)
