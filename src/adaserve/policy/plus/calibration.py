"""Calibrated acceptance: how often a child was accepted once its parent was, by what the draft said of it.

A table of cells, by band of temperature, source, depth (1, 2, 3 and more), whether it is its parent's first child, and the
draft's conditional probability: a second choice of 0.3 is not what a first choice of 0.3 is. Only children whose parent was
accepted were put to the test, so only they are counted: the others would count as refused for their parent's sake. What a cell
has seen fades, and weighs against a prior: what its like in kindred bands have seen, and where they have seen nothing, what the
draft says. Within a row the estimates are pooled where they would fall with the probability, and no later child is believed more
than the first one, so that the order of siblings stays the draft's own and the first child is verified whenever a later one is:
which of the verified nodes were first children is then plain to see.
Look-up proposes one child at most: it stands for itself, whatever the draft model proposes beside it.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import compress, pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from adaserve.policy.plus.bands import Band, band, bands, kin
from adaserve.policy.plus.host import Estimates, calibrated
from adaserve.policy.plus.parts import LearningConstants
from adaserve.step import Drafted
from adaserve.tree import MAX_NODES, CandidateTree, Source, edge_prob

EDGES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Between cells. They and what follows are the table's form, which saved calibrations share, and no PlusConstants."""

CELLS = len(EDGES) + 1
DEPTHS = 3
"""Deeper nodes share the last."""

BIRTHS = 2
"""First children, and later ones."""

ROWS = len(Source) * DEPTHS * BIRTHS
"""Of the table, for each band."""

LEAST = 1e-6
"""Nothing is believed less than this, or it would be padding."""

Floats = NDArray[np.float64]

Numbers = TypeVar("Numbers", int, Tensor)


class Calibration:
    """Learns the acceptance of edges from verified nodes, and corrects candidate trees by it.

    coupled: whether drafts are ranked by the noise of the target's draws; then all temperatures are kin.
    """

    def __init__(self, learning: LearningConstants, coupled: bool) -> None:
        self._learning = learning
        points = [0.0, *EDGES, 1.0]
        middle = [(low + high) / 2 for low, high in pairwise(points)]
        self._kin = kin(coupled)
        self._said = np.array(middle)  # [cells], the probability that stands for each cell
        self._points = (0.0, *middle, 1.0)  # [cells + 2]
        self._tried = np.zeros((len(Band), ROWS, CELLS))
        self._kept = np.zeros_like(self._tried)
        self._noted: list[tuple[Drafted, Sequence[float]]] = []  # steps not yet counted
        self._steps = 0
        self._estimates = self._fitted()  # at 0, at the cells' middles, and at 1
        self._copies: dict[torch.device, tuple[Tensor, Tensor]] = {}  # points and estimates where candidates live

    def learn(self, drafted: Drafted, temperature: Sequence[float]) -> None:
        """Take in a step's verified nodes. temperature: of the requests that Drafted.request counts."""
        if drafted.request:
            self._noted.append((drafted, temperature))
        self._steps += 1
        if self._steps % self._learning.refit_steps == 0:
            self._refit()

    def _count_noted(self) -> None:
        """Count what was noted, all at once before it matters: the first such step costs what ten others do."""
        for drafted, temperature in self._noted:
            self._count(drafted, [int(band(t)) for t in temperature])
        self._noted.clear()

    def _count(self, drafted: Drafted, belongs: list[int]) -> None:
        """Count the nodes that were put to the test. belongs: the requests' bands."""
        tried: list[int] = []
        kept: list[int] = []
        model, ngram = int(Source.MODEL), int(Source.NGRAM)
        begun: set[tuple[int, int]] = set()  # families whose first child has been seen: one of a request and depth was reached
        nodes = zip(drafted.request, drafted.depth, drafted.source, drafted.edge_prob, drafted.accepted, strict=True)
        for request, depth, source, prob, accepted in compress(nodes, drafted.reached):
            row = belongs[request] * ROWS + source * (DEPTHS * BIRTHS) + (min(max(depth, 1), DEPTHS) - 1) * BIRTHS
            if source != ngram:
                row += source == model and (request, depth) in begun
                begun.add((request, depth))
            cell = row * CELLS + bisect_left(EDGES, prob)
            tried.append(cell)
            if accepted:
                kept.append(cell)
        for mine in {belongs[request] for request in drafted.request}:
            self._tried[mine] *= self._learning.trial_fade
            self._kept[mine] *= self._learning.trial_fade
        for counts, cells in ((self._tried.ravel(), tried), (self._kept.ravel(), kept)):
            for cell in cells:
                counts[cell] += 1.0

    def edges(self, drafted: Drafted, temperature: Sequence[float]) -> list[float]:
        """What it expects of verified nodes, each given its parent, [m]. temperature: as in `learn`."""
        first = _first_siblings(drafted)
        nodes = zip(drafted.request, drafted.depth, drafted.source, drafted.edge_prob, first, strict=True)
        edge = [
            self._estimates(prob, _first_row(source, min(max(depth, 1), DEPTHS), band(temperature[request])) + (eldest != mine))
            for mine, (request, depth, source, prob, eldest) in enumerate(nodes)
        ]
        return [min(own, edge[eldest]) for own, eldest in zip(edge, first, strict=True)]

    def on_host(self, candidates: CandidateTree, temperature: Sequence[float]) -> list[list[float]]:
        """f of every candidate, the product of the estimates along its path, [n, N]; 0 for padding. In plain numbers.

        candidates: in the host's memory. temperature [n]: at which the requests draw.
        """
        if candidates.path_prob.numel() == 0:
            return [[] for _ in temperature]
        return calibrated(
            candidates.parent.tolist(),
            candidates.depth.tolist(),
            candidates.path_prob.tolist(),
            candidates.source.tolist(),
            [_FIRST_ROWS[band(t)] for t in temperature],
            self._estimates,
        )

    def __call__(self, candidates: CandidateTree, temperature: Tensor) -> Tensor:
        """The same in tensors, wherever they are: [n, N] float64. temperature [n] float64."""
        said = edge_prob(candidates)  # [n, N]
        points, estimate = self.held_on(said.device)
        column = torch.arange(said.shape[1], device=said.device)  # [N]
        first = _first_sibling(candidates)  # [n, N]
        depth = candidates.depth.clamp(1, DEPTHS)
        row = _first_row(candidates.source, depth, bands(temperature)[:, None]) + (first < column)  # [n, N]
        left = (torch.bucketize(said, points, right=True) - 1).clamp(0, points.shape[0] - 2)  # [n, N]
        below = row * points.shape[0] + left
        low, high = estimate[below], estimate[below + 1]
        edge = low + (high - low) * (said - points[left]) / (points[left + 1] - points[left])  # [n, N]
        edge = edge.minimum(pad(edge, (0, 1), value=1.0).gather(1, first))
        return _along_paths(torch.where(candidates.path_prob > 0, edge, 0.0), candidates.parent)

    def held_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What the draft says [P] and the estimates for it [rows * P] on a device, float64.

        Always the same tensors, for captured calls read them; refits write to them, and nobody else may.
        """
        if device not in self._copies:
            with torch.inference_mode(False):  # refits write to them outside of any such mode
                both = (
                    torch.tensor(x, dtype=torch.float64, device=device) for x in (self._estimates.points, self._estimates.value)
                )
                self._copies[device] = next(both), next(both)
        return self._copies[device]

    def remembered(self) -> dict[str, object]:
        """What has been counted, and by which cells: for policy/memory.py."""
        self._count_noted()
        return _layout() | {"tried": self._tried.tolist(), "kept": self._kept.tolist()}

    def recall(self, found: object) -> None:
        """Take up what was counted before; raises ValueError, and changes nothing, for counts of other cells or none at all."""
        layout = _layout()
        if not isinstance(found, dict):
            raise ValueError("not a calibration")
        if found.get("version") == 2:
            raise ValueError("counted before temperatures were told apart; it is learned anew")
        if {name: found.get(name) for name in layout} != layout:
            raise ValueError("not a calibration of these cells")
        try:
            tried, kept = (np.array(found[name], dtype=np.float64) for name in ("tried", "kept"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"counts that are no numbers: {error}") from error
        if (
            tried.shape != self._tried.shape
            or kept.shape != tried.shape
            or not ((kept >= 0) & (kept <= tried) & np.isfinite(tried)).all()
        ):
            raise ValueError("counts that cannot be")
        self._noted.clear()
        self._tried[:], self._kept[:] = tried, kept
        self._refit()

    def table(self) -> Tensor:
        """The estimates, [bands, ROWS, CELLS], at the cells' middles."""
        return torch.tensor(self._estimates.value, dtype=torch.float64).view(len(Band), ROWS, -1)[:, :, 1:-1]

    def _refit(self) -> None:
        self._count_noted()
        self._estimates = self._fitted()
        for device, (_, copy) in self._copies.items():  # in place: captured calls read it there
            fresh = torch.tensor(self._estimates.value, dtype=torch.float64)
            copy.copy_(fresh.pin_memory() if device.type == "cuda" else fresh, non_blocking=True)

    def _fitted(self) -> Estimates:
        """Each cell's posterior mean, made to rise with the probability."""
        prior = self._learning.prior_trials
        mean = (self._kept + prior * self._expected()) / (self._tried + prior)  # [bands, ROWS, CELLS]
        falls = (mean[:, :, 1:] < mean[:, :, :-1]).any(2)  # [bands, ROWS]
        rows = zip(mean[falls].tolist(), (self._tried[falls] + prior).tolist(), strict=True)
        mean[falls] = np.array([_pooled(*row) for row in rows]).reshape(-1, CELLS)
        # Towards the ends the estimate goes on as it does beside them.
        value = np.concatenate([mean[:, :, :1], mean, mean[:, :, -1:]], 2).clip(LEAST, 1.0)
        return Estimates(self._points, value.ravel().tolist())

    def _expected(self) -> Floats:
        """What is expected of each cell before it has seen anything, [bands, ROWS, CELLS].

        That lies between what the draft says and what its like in the kindred bands have seen, which is believed as much as the
        draft at most: kin are alike, not the same. The cell's own trials would count twice.
        """
        expected, prior = np.empty_like(self._tried), self._learning.prior_trials
        for family in self._kin:
            members = list(family)
            tried = self._tried[members].sum(0) - self._tried[members]  # [members, ROWS, CELLS], of the others
            kept = self._kept[members].sum(0) - self._kept[members]
            weight = prior / tried.clip(prior)
            expected[members] = (weight * kept.clip(0) + prior * self._said) / (weight * tried.clip(0) + prior)
        return expected


def _layout() -> dict[str, object]:
    """The cells, as a file has them."""
    return {
        "edges": list(EDGES),
        "depths": DEPTHS,
        "births": BIRTHS,
        "sources": [source.name for source in Source],
        "bands": [one.name for one in Band],
        "version": 3,
    }


def _first_row(source: Numbers, depth: Numbers, warmth: Numbers) -> Numbers:
    """The rows of the whole table for first children, depth 1 to DEPTHS; those for later children follow them."""
    return source * (DEPTHS * BIRTHS) + depth * BIRTHS + (warmth * ROWS - BIRTHS)


_FIRST_ROWS = tuple(
    tuple(tuple(_first_row(source, min(max(depth, 1), DEPTHS), warmth) for depth in range(MAX_NODES + 1)) for source in Source)
    for warmth in Band
)
"""By band, source and depth."""


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
    means: list[float] = []  # of blocks
    weights: list[float] = []
    counts: list[int] = []
    for m, w in zip(mean, weight, strict=True):
        count = 1
        while means and means[-1] > m:
            before, heavy = means.pop(), weights.pop()
            m, w, count = (m * w + before * heavy) / (w + heavy), w + heavy, count + counts.pop()
        means.append(m)
        weights.append(w)
        counts.append(count)
    return [m for m, count in zip(means, counts, strict=True) for _ in range(count)]
