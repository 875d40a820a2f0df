"""Calibrated acceptance: how often a child was accepted once its parent was, by what the draft said of it.

A table of cells, by source, depth (1, 2, 3 and more), whether it is its parent's first child, and the draft's conditional
probability: a second choice of 0.3 is not what a first choice of 0.3 is. Only children whose parent was
accepted were put to the test, so only they are counted: the others would count as refused for their parent's sake. What a cell
has seen fades, and weighs against a prior that believes the draft. Within a row the estimates are pooled where they would fall
with the probability, and no later child is believed more than the first one, so that the order of siblings stays the draft's own
and the first child is verified whenever a later one is: which of the verified nodes were first children is then plain to see.
Look-up proposes one child at most: it stands for itself, whatever the draft model proposes beside it.
"""

from bisect import bisect_left
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from adaserve.policy.plus.host import calibrated, first_sibling, interpolated
from adaserve.step import Drafted
from adaserve.tree import CandidateTree, Source, edge_prob

EDGES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
DEPTHS = 3
"""Deeper nodes share the last."""

BIRTHS = 2
"""First children, and later ones."""

PRIOR = 16.0
"""Trials that the prior is worth."""

FADE = 0.998
"""What a step leaves of earlier ones: about 500 steps are remembered."""

REFIT = 16
"""Steps between two refits of the estimates."""


class Calibration:
    """Learns the acceptance of edges from verified nodes, and corrects candidate trees by it."""

    def __init__(self) -> None:
        points = [0.0, *EDGES, 1.0]
        middle = [(low + high) / 2 for low, high in pairwise(points)]
        rows = len(Source) * DEPTHS * BIRTHS
        self._said = torch.tensor(middle, dtype=torch.float64)  # [cells], the probability that stands for each cell
        self._points = np.array([0.0, *middle, 1.0])  # [cells + 2]
        self._tried = torch.zeros(rows, len(middle), dtype=torch.float64)  # [rows, cells]
        self._kept = torch.zeros_like(self._tried)
        self._steps = 0
        self._estimate = self._fitted()  # [rows, cells + 2], at 0, at the cells' middles, and at 1
        self._copies: dict[torch.device, tuple[Tensor, Tensor]] = {}  # points and estimates where candidates live

    def learn(self, drafted: Drafted) -> None:
        """Take in a step's verified nodes."""
        tried, kept = self._tried.numpy(), self._kept.numpy()  # the same memory: small arrays cost less there
        tried *= FADE
        kept *= FADE
        nodes = zip(
            drafted.source,
            drafted.depth,
            drafted.edge_prob,
            drafted.reached,
            drafted.accepted,
            _first_siblings(drafted),
            strict=True,
        )
        for mine, (source, depth, prob, reached, accepted, first) in enumerate(nodes):
            if reached:
                row = (source * DEPTHS + min(max(depth, 1), DEPTHS) - 1) * BIRTHS + (first != mine)
                cell = row, bisect_left(EDGES, prob)
                tried[cell] += 1.0
                kept[cell] += accepted
        self._steps += 1
        if self._steps % REFIT == 0:
            self._refit()

    def edges(self, drafted: Drafted) -> list[float]:
        """What it expects of verified nodes, each given its parent, [m]."""
        if not drafted.depth:
            return []
        depth = np.array(drafted.depth).clip(1, DEPTHS)
        first = _first_siblings(drafted)
        later = [index != mine for mine, index in enumerate(first)]
        row = (np.array(drafted.source) * DEPTHS + depth - 1) * BIRTHS + later  # [m]
        edge = interpolated(np.array(drafted.edge_prob), row, self._points, self._estimate.numpy())
        found: list[float] = np.minimum(edge, edge[first]).tolist()
        return found

    def __call__(self, candidates: CandidateTree) -> Tensor:
        """f of every candidate: the product of the estimates along its path, [n, N] float64; 0 for padding."""
        return self.on_host(candidates) if candidates.path_prob.device.type == "cpu" else self.on_device(candidates)

    def on_host(self, candidates: CandidateTree) -> Tensor:
        """The same in arrays, for candidates in the host's memory."""
        prob, parent, source = candidates.path_prob.numpy(), candidates.parent.numpy(), candidates.source.numpy()
        depth = candidates.depth.numpy().clip(1, DEPTHS)
        column = np.arange(parent.shape[1])
        first = np.where(source != Source.MODEL, column, first_sibling(prob, parent, source != Source.NGRAM))  # [n, N]
        row = (source * DEPTHS + depth - 1) * BIRTHS + (first < column)  # [n, N]
        return torch.from_numpy(calibrated(prob, parent, row, first, self._points, self._estimate.numpy()))

    def on_device(self, candidates: CandidateTree) -> Tensor:
        """The same in tensors, wherever they are."""
        said = edge_prob(candidates)  # [n, N]
        points, estimate = self._on(said.device)
        column = torch.arange(said.shape[1], device=said.device)  # [N]
        first = _first_sibling(candidates)  # [n, N]
        depth = candidates.depth.clamp(min=1, max=DEPTHS)
        row = (candidates.source * DEPTHS + depth - 1) * BIRTHS + (first < column)  # [n, N]
        left = (torch.bucketize(said, points, right=True) - 1).clamp(0, points.shape[0] - 2)  # [n, N]
        below = row * points.shape[0] + left
        low, high = estimate[below], estimate[below + 1]
        edge = (low + (high - low) * (said - points[left]) / (points[left + 1] - points[left])).clamp(1e-6, 1.0)  # [n, N]
        edge = edge.minimum(pad(edge, (0, 1), value=1.0).gather(1, first))
        return _along_paths(torch.where(candidates.path_prob > 0, edge, 0.0), candidates.parent)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What the draft says [cells + 2] and the estimates for it [rows * (cells + 2)] on a device, always the same tensors."""
        if device not in self._copies:
            points = pad(pad(self._said, (1, 0)), (0, 1), value=1.0)  # [cells + 2]
            with torch.inference_mode(False):  # refits write to them outside of any such mode
                self._copies[device] = points.to(device), self._estimate.view(-1).clone().to(device)
        return self._copies[device]

    def remembered(self) -> dict[str, object]:
        """What has been counted, and by which cells: for policy/memory.py."""
        return _layout() | {"tried": self._tried.tolist(), "kept": self._kept.tolist()}

    def recall(self, found: object) -> None:
        """Take up what was counted before; raises ValueError, and changes nothing, for counts of other cells or none at all."""
        if not isinstance(found, dict) or {name: found.get(name) for name in _layout()} != _layout():
            raise ValueError("not a calibration of these cells")
        try:
            tried, kept = (torch.tensor(found[name], dtype=torch.float64) for name in ("tried", "kept"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"counts that are no numbers: {error}") from error
        if (
            tried.shape != self._tried.shape
            or kept.shape != tried.shape
            or not ((kept >= 0) & (kept <= tried) & tried.isfinite()).all()
        ):
            raise ValueError("counts that cannot be")
        self._tried.copy_(tried)
        self._kept.copy_(kept)
        self._refit()

    def table(self) -> Tensor:
        """The estimates, [sources * DEPTHS * BIRTHS, cells], at the cells' middles."""
        return self._estimate[:, 1:-1]

    def _refit(self) -> None:
        self._estimate = self._fitted()
        for device, (_, copy) in self._copies.items():  # in place: captured calls read it there
            fresh = self._estimate.view(-1)
            copy.copy_(fresh.pin_memory() if device.type == "cuda" else fresh, non_blocking=True)

    def _fitted(self) -> Tensor:
        """Each cell's posterior mean, made to rise with the probability."""
        mean = (self._kept + PRIOR * self._said) / (self._tried + PRIOR)  # [rows, cells]
        rising = torch.tensor([_pooled(m, w) for m, w in zip(mean.tolist(), (self._tried + PRIOR).tolist(), strict=True)])
        # Towards the ends the estimate goes on as it does beside them.
        return torch.cat([rising[:, :1], rising, rising[:, -1:]], 1).double()


def _layout() -> dict[str, object]:
    """The cells, as a file has them."""
    return {"edges": list(EDGES), "depths": DEPTHS, "births": BIRTHS, "sources": [source.name for source in Source], "version": 2}


def _first_siblings(drafted: Drafted) -> list[int]:
    """The index of each verified node's first sibling that was verified; its own where there is none, and where look-up agreed.

    Siblings are known by their request, their depth and their parent's f.
    """
    seen: dict[tuple[int, int, float], int] = {}
    first = []
    nodes = zip(drafted.request, drafted.depth, drafted.path_prob, drafted.edge_prob, drafted.source, strict=True)
    for mine, (request, depth, path, edge, source) in enumerate(nodes):
        if source == Source.NGRAM:
            first.append(mine)
            continue
        eldest = seen.setdefault((request, depth, round(path / edge, 9) if edge else 0.0), mine)
        first.append(eldest if source == Source.MODEL else mine)
    return first


def _first_sibling(candidates: CandidateTree) -> Tensor:
    """The column of each candidate's first sibling, itself included, [n, N]; its own for what look-up proposed.

    Padding and what look-up alone proposed are nobody's siblings.
    """
    n, columns = candidates.parent.shape
    column = torch.arange(columns, device=candidates.parent.device).expand(n, -1)  # [n, N]
    counted = torch.where((candidates.path_prob > 0) & (candidates.source != Source.NGRAM), column, columns)
    parent = candidates.parent + 1
    first = torch.full((n, columns + 1), columns, device=column.device).scatter_reduce_(1, parent, counted, "amin")  # [n, 1 + N]
    return torch.where(candidates.source != Source.MODEL, column, first.gather(1, parent))


def _along_paths(edge: Tensor, parent: Tensor) -> Tensor:
    """The product of `edge` [n, N] from the root to every node, by pointer jumping."""
    prob = pad(edge, (1, 0), value=1.0)  # [n, 1 + N], the root's is 1
    above = pad(parent + 1, (1, 0))  # [n, 1 + N], the root's parent is itself
    for _ in range(max(edge.shape[1], 1).bit_length()):
        prob = prob * prob.gather(1, above)
        above = above.gather(1, above)
    return prob[:, 1:]


def _pooled(mean: list[float], weight: list[float]) -> list[float]:
    """The nearest rising sequence (weighted least squares): neighbours that fall are pooled."""
    blocks: list[tuple[float, float, int]] = []
    for block in zip(mean, weight, [1] * len(mean), strict=True):
        m, w, count = block
        while blocks and blocks[-1][0] > m:
            before, heavy, many = blocks.pop()
            m, w, count = (m * w + before * heavy) / (w + heavy), w + heavy, count + many
        blocks.append((m, w, count))
    return [m for m, _, count in blocks for _ in range(count)]
