"""The beam that grows candidate trees from a draft model's predictions: logic alone, no model.

Step 1 keeps the w best children of the root, each later step the w best of all w x |V| extensions by path probability
(Theorem 4.1). No more than w extensions of one node can be among the w best, so a step only needs the draft's w likeliest tokens
of every row.

    step          1               2                 d
    column   | 0 ... w-1 | w ... 2w-1 | ... | ... dw-1 |     row b of step j stands in column (j - 1) w + b

A node's column is also its row in the slot's scratch tail while drafting, hence d w <= MAX_NODES. When a column is accepted, its
draft key and value stand in the tail row of the same number (those of the last step were never computed).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adaserve.kernels.beam import Kept, extend
from adaserve.tree import MAX_NODES, CandidateTree, Source


@dataclass(frozen=True)
class BeamRows:
    """The nodes that one step kept: what the draft model reads next, w rows for each of n requests.

    token     [n, w] int64    their tokens; 0 in padding
    parent    [n, w] int64    columns of their parents, ROOT in step 1
    path_prob [n, w] float64  f; 0 marks padding, which may be computed or skipped alike
    tail      [w] int64       tail rows where their keys and values go, the same for all requests: their columns
    mask      [n, w] int64    tail rows that they attend to, as bits: their ancestors and themselves
    depth     the step, from 1; a row's position = the root's position + depth
    """

    token: Tensor
    parent: Tensor
    path_prob: Tensor
    tail: Tensor
    mask: Tensor
    depth: int


class Beam:
    """Candidate trees of n requests in the making.

    width  w, nodes kept per step and request
    room   [n] int64  deepest node that each request may use; with 0 it gets padding only
    """

    def __init__(self, width: int, room: Tensor) -> None:
        if not 1 <= width <= MAX_NODES:
            raise ValueError(f"a beam's width must be in [1, {MAX_NODES}], got {width}")
        self._width = width
        self._room = room
        self._kept: Kept | None = None  # by the last step
        self._steps: list[BeamRows] = []

    def extend(self, token: Tensor, log_prob: Tensor) -> BeamRows:
        """Take one more step; returns the rows it kept, best first.

        token     [n, r, k] int64  the k likeliest next tokens (different ones) of every row: r = 1 for the root in step 1, then
                                   r = w for the rows that the last call returned
        log_prob  [n, r, k]        their conditional log-probabilities under the draft; -inf and NaN count as impossible
        k >= w, or the whole vocabulary. Raises ValueError when the trees would outgrow MAX_NODES columns.
        """
        rows = token.shape[1]
        width, first = self._width, len(self._steps) * self._width
        if first + width > MAX_NODES:
            raise ValueError(f"{len(self._steps) + 1} steps of width {width} exceed {MAX_NODES} candidates")
        if rows != (width if self._steps else 1):
            raise ValueError(f"step {len(self._steps) + 1} of a beam of width {width} cannot extend {rows} rows")
        depth = len(self._steps) + 1
        kept = extend(token, log_prob, self._room, self._kept, depth, width)
        tail = torch.arange(first, first + width, device=token.device)  # [w]
        self._kept = kept
        self._steps.append(BeamRows(kept.token, kept.parent, kept.path_prob, tail, kept.mask, depth))
        return self._steps[-1]

    def tree(self) -> CandidateTree:
        """The candidates of all steps so far, N = steps * w columns."""
        if not self._steps:
            return CandidateTree.empty(self._room.shape[0], self._room.device)
        token = torch.cat([s.token for s in self._steps], 1)  # [n, N]
        depth = torch.arange(token.shape[1], device=token.device) // self._width + 1  # [N]
        return CandidateTree(
            token=token,
            parent=torch.cat([s.parent for s in self._steps], 1),
            depth=depth.expand_as(token),
            path_prob=torch.cat([s.path_prob for s in self._steps], 1),
            source=torch.full_like(token, Source.MODEL),
        )
