"""What a step's results on the host tell: which requests failed, and how the verified nodes fared."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adaserve.step import Drafted, StepPlan


@dataclass(frozen=True)
class Found:
    """A step's results on the host.

    tokens [n, D + 1], length [n], first [C]: as in Verdict, and the chunks' tokens. accepted, row, parent, depth, column [B]: the
    trees' rows. finite [B + C]. source, path_prob, edge_prob [n, N]: the candidates.
    """

    tokens: Tensor
    length: Tensor
    first: Tensor
    accepted: Tensor
    row: Tensor
    parent: Tensor
    depth: Tensor
    column: Tensor
    finite: Tensor
    source: Tensor
    path_prob: Tensor
    edge_prob: Tensor

    def roots(self, rows: list[int]) -> "Found":
        """Of a plain step's results those of some of its requests, as if it had been theirs alone."""
        picked = {f: getattr(self, f)[rows] for f in ("tokens", "length", "accepted", "depth", "column", "finite")}
        order = torch.arange(len(rows))
        none = self.path_prob[:0].new_empty(len(rows), 0)
        return replace(self, **picked, row=order, parent=order, source=none.long(), path_prob=none, edge_prob=none)

    @property
    def nodes(self) -> Tensor:
        """The packed rows of draft nodes, without roots and padding.  # [m]"""
        return ((self.depth > 0) & (self.row < len(self.length))).nonzero()[:, 0]


def failed_slots(plan: StepPlan, found: Found) -> tuple[int, ...]:
    """Slots whose accepted rows, or whose chunk's last row, had no finite logits."""
    drawing = [c.slot for c in plan.chunks if c.draws]
    rows = len(found.row)
    bad = ~found.finite[: rows + len(drawing)].bool()
    if not bool(bad.any()):
        return ()
    owners = found.row[bad[:rows] & found.accepted.bool()].tolist()
    return (
        *{plan.decoding[i] for i in owners if i < len(plan.decoding)},
        *(drawing[i] for i in bad[rows:].nonzero()[:, 0].tolist()),
    )


def drafted_of(found: Found) -> Drafted:
    """Describe the verified nodes for learning and metrics."""
    if found.source.shape[1] == 0:
        return Drafted((), (), (), (), (), (), ())
    node = found.nodes  # [m]
    row, column, accepted = found.row[node], found.column[node], found.accepted.bool()
    return Drafted(
        request=tuple(row.tolist()),
        depth=tuple(found.depth[node].tolist()),
        source=tuple(found.source[row, column].tolist()),
        path_prob=tuple(found.path_prob[row, column].tolist()),
        edge_prob=tuple(found.edge_prob[row, column].tolist()),
        reached=tuple(accepted[found.parent[node]].tolist()),
        accepted=tuple(accepted[node].tolist()),
    )
