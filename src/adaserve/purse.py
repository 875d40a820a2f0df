"""What a selection gets and gives: a purse, and the nodes that were bought from it. All tensors, so that it may be captured."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

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

    @staticmethod
    def of(n: int, columns: int, chosen: Iterable[int], slo: Iterable[int]) -> "Selected":
        """These nodes of n requests with so many columns each, at least one in all; as flat cells, request * columns + column."""
        size = n * columns
        masks = bytearray(2 * size)
        for cell in chosen:
            masks[cell] = 1
        for cell in slo:
            masks[size + cell] = 1
        return Selected(*torch.frombuffer(masks, dtype=torch.bool).view(2, n, columns).unbind())


class Choose(Protocol):
    """A selection, in two forms that choose the same nodes. Requests without candidates change nothing for the others."""

    def __call__(self, candidates: CandidateTree, need: Tensor, purse: Purse, temperature: Tensor) -> Selected:
        """Choose among candidates of n requests, wherever they live.

        need [n] float64: A_i, the tokens that each must gain now; 0: no target. temperature [n] float64: at which each draws.
        A pure function of tensors that never asks the device for a number.
        """
        ...

    def on_host(self, candidates: CandidateTree, need: Sequence[float], limits: Limits, temperature: Sequence[float]) -> Selected:
        """Choose among candidates in the host's memory, from the plan's own numbers."""
        ...


def in_tensors(
    choose: Choose, candidates: CandidateTree, need: Sequence[float], limits: Limits, temperature: Sequence[float]
) -> Selected:
    """What `on_host` chooses, by way of tensors: for selections that have no quicker way, and to compare with those that do."""
    wanted, drawn_at = (torch.tensor(x, dtype=torch.float64) for x in (need, temperature))  # [n]
    return choose(candidates, wanted, Purse.of(limits), drawn_at)
