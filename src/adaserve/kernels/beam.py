"""One step of a beam: of all that may follow the rows of the last step, the likeliest few."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from adaserve.kernels import native
from adaserve.tree import ROOT


@dataclass(frozen=True)
class Kept:
    """The nodes that a step kept, best first.

    token, parent, mask [n, w] int64, path_prob [n, w] float64: as in speculation.beam.BeamRows.
    """

    token: Tensor
    parent: Tensor
    mask: Tensor
    path_prob: Tensor


def extend_reference(token: Tensor, log_prob: Tensor, room: Tensor, above: Kept | None, depth: int, width: int) -> Kept:
    """The plain torch twin of `extend`, for any device."""
    n, rows, ranks = token.shape
    first = (depth - 1) * width
    # In float64, and as a product of numbers <= 1: then f cannot rise along a path, whatever the rounding.
    edge = log_prob.double().exp().nan_to_num(nan=0.0).clamp(max=1.0)  # [n, r, k]
    edge = edge.masked_fill((depth > room)[:, None, None], 0.0)
    if above is not None:
        edge = above.path_prob[:, :, None] * edge
    missing = max(width - rows * ranks, 0)  # a vocabulary smaller than the width
    score, pick = pad(edge.flatten(1), (0, missing)).sort(dim=1, descending=True, stable=True)
    score, pick = score[:, :width], pick[:, :width]  # [n, w]
    chosen = pad(token.flatten(1), (0, missing)).gather(1, pick).masked_fill(score == 0, 0)

    mask = (1 << torch.arange(first, first + width, device=token.device)).expand(n, width)
    if above is None:
        return Kept(chosen, torch.full_like(pick, ROOT), mask, score)
    row = (pick // ranks).clamp(max=rows - 1)  # [n, w], of the parent in the last step
    return Kept(chosen, row + (first - width), mask | above.mask.gather(1, row), score)


def extend(token: Tensor, log_prob: Tensor, room: Tensor, above: Kept | None, depth: int, width: int) -> Kept:
    """Keep the `width` best of the n * r * k extensions of a beam's rows; f differs from the twin's in the last bits at most.

    token, log_prob [n, r, k], room [n], depth: as Beam.extend has them. above: what the step before kept, r = w; None in step 1.
    """
    before = () if above is None else (above.path_prob, above.mask)
    suits = log_prob.dtype is torch.float64 and native.readable(token, log_prob, room, *before)
    run = native.function("beam", "extend_beam", "ppiiiiippppppp") if suits else None
    if run is None:
        return extend_reference(token, log_prob, room, above, depth, width)
    n = token.shape[0]
    chosen, parent, mask = torch.empty(3, n, width, dtype=torch.int64).unbind()  # [n, w] each
    score = torch.empty(n, width, dtype=torch.float64)  # [n, w]
    last = [x.data_ptr() for x in before] or (None, None)
    found = (chosen.data_ptr(), parent.data_ptr(), mask.data_ptr(), score.data_ptr())
    run(token.data_ptr(), log_prob.data_ptr(), *token.shape, width, depth, room.data_ptr(), *last, *found)
    return Kept(chosen, parent, mask, score)
