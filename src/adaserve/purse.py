"""What a selection gets and gives: a purse, and the nodes that were bought from it. All tensors, so that it may be captured."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adaserve.step import Limits, Order
from adaserve.tree import CandidateTree


@dataclass(frozen=True)
class Purse:
    """What a step may spend on trees: Limits where the candidates live.

    nodes [] int64: most draft nodes over all requests. price [K] float64: what 0, 1, ... nodes cost, in tokens, at least for all
    that may be bought; K = 0: nothing. least, most: bounds on `nodes` that the host knows. per_request, depth, order: of Limits.
    """

    nodes: Tensor
    price: Tensor
    least: int
    most: int
    per_request: int
    depth: int
    order: Order

    @staticmethod
    def of(limits: Limits, device: torch.device | str = "cpu") -> "Purse":
        """The purse of these limits."""
        nodes = max(limits.nodes, 0)
        price = torch.tensor(limits.price, dtype=torch.float64, device=device)  # [K]
        amount = torch.full((), nodes, dtype=torch.int64, device=device)  # []
        return Purse(amount, price, nodes, nodes, limits.per_request, limits.depth, limits.order)


@dataclass(frozen=True)
class Selected:
    """What a selection chose.

    chosen [n, N] bool  nodes to verify: connected, never padding, at most MAX_NODES a request and as many as the purse holds
    slo    [n, N] bool  those among them that the SLO phase chose, for the sake of their request's target; the others were chosen
                        for the throughput of the batch
    """

    chosen: Tensor
    slo: Tensor


Choose = Callable[[CandidateTree, Tensor, Purse, Tensor], Selected]
"""A selection: candidates of n requests, need [n] float64 (A_i, the tokens that each must gain now; 0: no target), a purse, and
the temperatures [n] float64 at which the requests draw.

A pure function of tensors that never asks the device for a number. Requests without candidates change nothing for the others.
"""
