"""What a step's results on the host tell: which requests failed, and how the verified nodes fared."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaserve.step import Drafted, StepPlan

Array = NDArray[Any]


@dataclass(frozen=True)
class Found:
    """A step's results on the host.

    tokens [n, D + 1], length [n], first [C]: as in Verdict, and the chunks' tokens. accepted, row, parent, depth, column [B]: the
    trees' rows. finite [B + C]. source, path_prob, edge_prob [n, N]: the candidates.
    """

    tokens: Array
    length: Array
    first: Array
    accepted: Array
    row: Array
    parent: Array
    depth: Array
    column: Array
    finite: Array
    source: Array
    path_prob: Array
    edge_prob: Array

    def roots(self, rows: list[int]) -> "Found":
        """Of a plain step's results those of some of its requests, as if it had been theirs alone."""
        picked = {f: getattr(self, f)[rows] for f in ("tokens", "length", "accepted", "depth", "column", "finite")}
        order, none = np.arange(len(rows)), np.empty((len(rows), 0))
        return replace(self, **picked, row=order, parent=order, source=none, path_prob=none, edge_prob=none)

    @property
    def nodes(self) -> Array:
        """The packed rows of draft nodes, without roots and padding.  # [m]"""
        return np.flatnonzero((self.depth > 0) & (self.row < len(self.length)))


def failed_slots(plan: StepPlan, found: Found) -> tuple[int, ...]:
    """Slots whose accepted rows, or whose chunk's last row, had no finite logits."""
    drawing = [c.slot for c in plan.chunks if c.draws]
    rows = len(found.row)
    finite = found.finite[: rows + len(drawing)].astype(bool)
    if finite.all():
        return ()
    owners = found.row[~finite[:rows] & found.accepted.astype(bool)].tolist()
    return (
        *{plan.decoding[i] for i in owners if i < len(plan.decoding)},
        *(drawing[i] for i in np.flatnonzero(~finite[rows:]).tolist()),
    )


def drafted_of(found: Found) -> Drafted:
    """Describe the verified nodes for learning and metrics."""
    if found.source.shape[1] == 0:
        return Drafted((), (), (), (), (), (), ())
    node = found.nodes  # [m]
    row, column, accepted = found.row[node], found.column[node], found.accepted.astype(bool)
    return Drafted(
        request=tuple(row.tolist()),
        depth=tuple(found.depth[node].tolist()),
        source=tuple(found.source[row, column].tolist()),
        path_prob=tuple(found.path_prob[row, column].tolist()),
        edge_prob=tuple(found.edge_prob[row, column].tolist()),
        reached=tuple(accepted[found.parent[node]].tolist()),
        accepted=tuple(accepted[node].tolist()),
    )
