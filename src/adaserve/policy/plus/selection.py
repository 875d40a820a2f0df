"""Selection of `adaserve+`: the nodes that bring more than they cost.

A node is worth its f, in tokens, and `urgency` times as much as long as its request is short of its need. Limits.price says
what so many nodes cost. As f never rises along a path and urgency only ends along it, the best k nodes of the batch are connected
trees for every k, as in policy/selection.py; the k with the largest surplus is taken, wherever on the staircase it stands.
On a GPU three kernels choose (triton_selection.py). They are imported where they are used: a machine without one need not have
Triton.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from adaserve.policy.plus.calibration import Calibration
from adaserve.policy.plus.host import largest_surplus
from adaserve.purse import Purse, Selected
from adaserve.step import Limits
from adaserve.tree import MAX_NODES, CandidateTree


@dataclass(frozen=True)
class SurplusSelection:
    """Take the nodes whose worth exceeds their price by most. calibration: None believes the draft's probabilities."""

    urgency: float
    calibration: Calibration | None

    def __call__(self, candidates: CandidateTree, need: Tensor, purse: Purse, temperature: Tensor) -> Selected:
        """Choose by surplus; need, temperature [n] float64."""
        n, columns = candidates.path_prob.shape
        if n == 0 or columns == 0 or purse.most == 0:
            return _nothing(candidates)
        return surplus(candidates, need, purse, temperature, self.urgency, self.calibration)

    def on_host(self, candidates: CandidateTree, need: Sequence[float], limits: Limits, temperature: Sequence[float]) -> Selected:
        """The same for candidates in the host's memory, in plain numbers: see policy/plus/host.py."""
        n, columns = candidates.path_prob.shape
        if n == 0 or columns == 0 or limits.nodes <= 0:
            return _nothing(candidates)
        f = candidates.path_prob.tolist() if self.calibration is None else self.calibration.on_host(candidates, temperature)
        wanted = [min(tokens, limits.depth + 1) for tokens in need]
        return Selected.of(n, columns, *largest_surplus(f, wanted, self.urgency, limits.nodes, limits.price))


def surplus(
    candidates: CandidateTree, need: Tensor, purse: Purse, temperature: Tensor, urgency: float, calibration: Calibration | None
) -> Selected:
    """Choose by surplus, on a GPU in three kernels; arguments as of `surplus_reference`."""
    if candidates.path_prob.is_cuda:
        from adaserve.policy.plus import triton_selection

        if triton_selection.able(*candidates.path_prob.shape):
            return triton_selection.surplus(candidates, need, purse, temperature, urgency, calibration)
    return surplus_reference(candidates, need, purse, temperature, urgency, calibration)


def surplus_reference(
    candidates: CandidateTree, need: Tensor, purse: Purse, temperature: Tensor, urgency: float, calibration: Calibration | None
) -> Selected:
    """The plain torch twin of triton_selection.surplus, for any device: a hundred operations.

    need, temperature [n] float64. n, N and purse.most are above 0. calibration: None believes the draft's probabilities.
    """
    f = candidates.path_prob if calibration is None else calibration(candidates, temperature)  # [n, N]
    return _chosen(f, need, purse, urgency)


def _nothing(candidates: CandidateTree) -> Selected:
    nothing = torch.zeros_like(candidates.token, dtype=torch.bool)
    return Selected(nothing, nothing)


def _chosen(f: Tensor, need: Tensor, purse: Purse, urgency: float) -> Selected:
    """Choose by surplus. f [n, N] float64: of the candidates."""
    n, columns = f.shape
    prob, column = f.sort(dim=1, descending=True, stable=True)  # [n, N], each request's best first
    prob = prob[:, :MAX_NODES]  # [n, R], by rank
    before = pad(prob[:, :-1], (1, 0), value=1.0).cumsum(1)  # [n, R], tokens expected without the node
    short = before < need.clamp(max=purse.depth + 1)[:, None]  # [n, R]
    worth = torch.where(short, prob * urgency, prob)  # [n, R]
    # Rank-major, so that of equals the request with fewer nodes comes first.
    best, flat = worth.t().flatten().sort(descending=True, stable=True)  # [R * n]
    best, flat = best[: purse.most], flat[: purse.most]  # [K]
    index = torch.arange(best.shape[0], device=f.device)  # [K]
    bought = (best > 0) & (index < purse.nodes)
    if purse.price.shape[0] > 0:
        surplus = pad(best.cumsum(0), (1, 0)) - purse.price[: best.shape[0] + 1]  # [K + 1], of the k best
        bought = bought & (index < surplus.argmax())
    total = torch.zeros(n, dtype=torch.int64, device=f.device).scatter_add_(0, flat % n, bought.long())  # [n]
    rank = torch.arange(columns, device=f.device)  # [N]
    taken = rank < total[:, None]  # [n, N] by rank
    chosen = torch.zeros_like(taken).scatter_(1, column, taken)
    for_need = torch.zeros_like(taken).scatter_(1, column, taken & pad(short, (0, columns - short.shape[1])))
    return Selected(chosen, for_need)
