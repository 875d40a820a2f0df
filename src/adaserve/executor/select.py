"""A selection as one captured call: it is dozens of kernels over next to nothing."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from adaserve.padding import places
from adaserve.purse import Choose, Purse, Selected
from adaserve.runtime.capture import Capture
from adaserve.runtime.transfer import stage
from adaserve.step import StepPlan
from adaserve.tree import CandidateTree


def select_padded(plan: StepPlan, candidates: CandidateTree, choose: Choose, capture: Capture) -> Selected:
    """Let a selection choose among candidates, of which there are some, at least one node.  [n, N]

    Requests are padded to one of a few numbers by such as have no candidates, and so are nodes and prices. What was selected is
    to be read before the next captured call.
    """
    (n, columns), device, limits = candidates.token.shape, candidates.token.device, plan.limits
    count = places(n)
    nodes = min(limits.nodes, count * columns)  # more cannot be bought
    most = min(places(nodes), count * columns)
    least = most if nodes == count * columns else 0
    price = limits.price[: nodes + 1]
    price = (*price, *[math.inf] * (most + 1 - len(price))) if price else ()
    idle = [0.0] * (count - n)
    need, temperature = (stage([*x, *idle], device, torch.float64) for x in (plan.need, plan.temperature))  # [count]
    tensors: Sequence[Tensor] = candidates.parent, candidates.depth, candidates.path_prob, candidates.source
    if count > n:
        tensors = [pad(x, (0, 0, 0, count - n)) for x in tensors]

    def run(need: Tensor, nodes: Tensor, price: Tensor, temperature: Tensor, parent: Tensor, *rest: Tensor) -> Selected:
        purse = Purse(nodes[0], price, least, most, limits.per_request, limits.depth, limits.order)
        return choose(CandidateTree(parent, parent, *rest), need, purse, temperature)  # tokens are nothing to go by

    key = "select", choose, least, most, limits.per_request, limits.depth, limits.order
    inputs = need, stage([nodes], device), stage(price, device, torch.float64), temperature, *tensors
    found = capture(key, run, *inputs)
    return Selected(found.chosen[:n], found.slo[:n])
