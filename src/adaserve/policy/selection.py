"""Selection: which candidate nodes deserve the target's time. Pure tensor functions that run where their tensors live.

Everything here rests on two facts about a CandidateTree: f never rises along a path, and parents stand before their children.
Hence a *stable* descending sort by f keeps parents ahead of children, and every prefix of it, "the k best nodes", is a connected
tree. (An unstable sort may put a child before a parent of equal f.) Nothing here looks at a tensor's values on the host.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from adaserve.policy.on_host import by_algorithm2
from adaserve.purse import Choose, Purse, Selected, in_tensors
from adaserve.step import Limits, Order
from adaserve.tree import MAX_NODES, CandidateTree

Selection = Choose
"""Decides which candidates to verify."""


class SloSelection:
    """The paper's selection (Algorithm 2, lines "SLO-customised" and "throughput-optimised"): targets first, then throughput.

    SLO phase: requests in `purse.order`; each takes its best candidates until 1 + sum f >= min(A_i, d + 1), at most
    `purse.per_request` of them, while `purse.nodes` last. Throughput phase: the best remaining candidates of all requests until
    `purse.nodes` are spent. (The paper's pseudocode spends while the budget is >= 0, one too many; here never more than given.)

    Ties. Requests of equal need: the lower index first. Candidates of one request with equal f: the lower column first.
    Candidates of different requests with equal f (throughput phase): the request that holds fewer nodes, then the lower index.
    """

    def __call__(self, candidates: CandidateTree, need: Tensor, purse: Purse, temperature: Tensor) -> Selected:
        """Choose by Algorithm 2; need [n] float64. The paper knows nothing of temperatures."""
        n, columns = candidates.path_prob.shape
        if n == 0 or columns == 0 or purse.most == 0:
            nothing = torch.zeros_like(candidates.token, dtype=torch.bool)
            return Selected(nothing, nothing)
        prob, column = candidates.path_prob.sort(dim=1, descending=True, stable=True)  # [n, N], each request's best first
        kept = min(columns, MAX_NODES)  # no request may have more, so its other candidates do not matter
        prob = prob[:, :kept]  # [n, R], by rank
        rank = torch.arange(columns, device=prob.device)  # [N]

        taken = _slo_counts(prob, need, purse)  # [n]
        everything_fits = n * kept <= purse.least
        total = (prob > 0).sum(1) if everything_fits else taken + _throughput_counts(prob, taken, purse)  # [n]
        chosen = torch.empty_like(column, dtype=torch.bool).scatter_(1, column, rank < total[:, None])
        slo = torch.empty_like(chosen).scatter_(1, column, rank < taken[:, None])
        return Selected(chosen, slo)

    def on_host(self, candidates: CandidateTree, need: Sequence[float], limits: Limits, temperature: Sequence[float]) -> Selected:
        """The same for candidates in the host's memory, in plain numbers: see policy/on_host.py."""
        n, columns = candidates.token.shape
        if n == 0 or columns == 0:
            return in_tensors(self, candidates, need, limits, temperature)
        return Selected.of(n, columns, *by_algorithm2(candidates.path_prob.tolist(), need, limits))


def _slo_counts(prob: Tensor, need: Tensor, purse: Purse) -> Tensor:
    """How many of its best candidates each request gets in the SLO phase, [n]; prob [n, R] float64, best first."""
    # Column k of `gained` is 1 + the sum of the k best f: what the request expects when it has k nodes.
    gained = pad(prob, (1, 0), value=1.0).cumsum(1)  # [n, 1 + R]
    target = need.clamp(max=purse.depth + 1)[:, None]  # [n, 1]
    most = max(min(purse.per_request, prob.shape[1]), 0)
    wanted = ((gained[:, :most] < target) & (prob[:, :most] > 0)).sum(1)  # [n], nodes until the target is met

    order = _order(gained[:, most], need, purse.order)  # [n]
    queued = wanted[order].cumsum(0)  # [n], nodes wanted by each request and those before it
    granted = torch.minimum(queued, purse.nodes)
    return torch.empty_like(wanted).scatter_(0, order, granted - pad(granted[:-1], (1, 0)))


def _order(reach: Tensor, need: Tensor, order: Order) -> Tensor:
    """Requests as the SLO phase serves them, [n]; reach [n] is what each expects to gain with its best `per_request` nodes."""
    if order is Order.EASIEST:
        return need.argsort(stable=True)
    neediest = need.argsort(descending=True, stable=True)
    if order is Order.NEEDIEST:
        return neediest
    # Those who can reach their target whatever the others do come first, so that hopeless ones cannot eat the budget.
    hopeless = (reach < need)[neediest].to(torch.uint8)
    return neediest[hopeless.argsort(stable=True)]


def _throughput_counts(prob: Tensor, taken: Tensor, purse: Purse) -> Tensor:
    """How many more nodes each request gets in the throughput phase, [n]; prob [n, R], the best `taken` [n] of them gone."""
    n, ranks = prob.shape
    rank = torch.arange(ranks, device=prob.device)
    rest = prob.masked_fill(rank < taken[:, None], 0.0)  # [n, R]
    # Rank-major, so that of equals the request with fewer nodes comes first.
    best, flat = rest.t().flatten().sort(descending=True, stable=True)  # [R * n]
    best, flat = best[: purse.most], flat[: purse.most]
    left = purse.nodes - taken.sum()
    bought = (torch.arange(best.shape[0], device=prob.device) < left) & (best > 0)
    return torch.zeros_like(taken).scatter_add_(0, flat % n, bought.to(taken.dtype))


class LikelihoodSelection:
    """The likeliest nodes of the whole batch until `purse.nodes` are spent, blind to needs: `throughput`.

    This is SloSelection's second phase alone, ties included. It maximises the expected tokens of the step, as vLLM does from
    version 0.32 on for chains.
    """

    def __call__(self, candidates: CandidateTree, need: Tensor, purse: Purse, temperature: Tensor) -> Selected:
        """Choose by f alone; `need` and `temperature` are not looked at."""
        wanted = torch.zeros_like(need)
        if candidates.path_prob.is_cuda and candidates.path_prob.numel() and purse.most:
            from adaserve.policy.plus.selection import surplus  # which is a few kernels on a GPU

            free = replace(purse, price=purse.price[:0])  # the largest surplus of what costs nothing, and nobody needs
            return surplus(candidates, wanted, free, temperature, 1.0, None)
        return SloSelection()(candidates, wanted, purse, temperature)

    def on_host(self, candidates: CandidateTree, need: Sequence[float], limits: Limits, temperature: Sequence[float]) -> Selected:
        """The same for candidates in the host's memory."""
        return SloSelection().on_host(candidates, [0.0] * len(need), limits, temperature)


class ChainSelection:
    """Verify everything that the drafter proposed, blind to needs and probabilities: `spec:K` and `specinfer`.

    When `purse.nodes` cannot hold all candidates, shallow nodes come first: all requests' first tokens, then their second ones,
    and so on; within one depth the lower column, then the lower request. Trees work as well as chains.
    """

    def __call__(self, candidates: CandidateTree, need: Tensor, purse: Purse, temperature: Tensor) -> Selected:
        """Choose all candidates, or as many of the shallowest as fit; `need` and `temperature` are not looked at."""
        n, columns = candidates.path_prob.shape
        real = candidates.path_prob > 0  # [n, N]
        if n * columns == 0:
            return Selected(real, real)
        real &= real.cumsum(1) <= MAX_NODES
        if n * columns > purse.least:
            depth = candidates.depth.masked_fill(~real, columns + 1)  # [n, N], padding last
            order = depth.t().flatten().argsort(stable=True)[: purse.most]
            bought = torch.arange(order.shape[0], device=real.device) < purse.nodes
            fits = torch.zeros(n * columns, dtype=torch.bool, device=real.device).scatter_(0, order, bought)
            real &= fits.view(columns, n).t()
        return Selected(real, torch.zeros_like(real))

    def on_host(self, candidates: CandidateTree, need: Sequence[float], limits: Limits, temperature: Sequence[float]) -> Selected:
        """The same for candidates in the host's memory."""
        n, columns = candidates.token.shape
        if n == 0 or columns == 0:
            return in_tensors(self, candidates, need, limits, temperature)
        nodes = [
            (request, column)
            for request, f in enumerate(candidates.path_prob.tolist())
            for column in [column for column, x in enumerate(f) if x > 0.0][:MAX_NODES]
        ]
        if len(nodes) > limits.nodes:
            depth = candidates.depth.tolist()
            nodes.sort(key=lambda node: (depth[node[0]][node[1]], node[1], node[0]))
        bought = (request * columns + column for request, column in nodes[: max(limits.nodes, 0)])
        return Selected.of(n, columns, bought, ())
