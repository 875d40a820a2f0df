"""A selection as one captured call: it is a few kernels, or dozens, over next to nothing."""

import math

import torch
from torch import Tensor

from adaserve.padding import places, power_of_two
from adaserve.purse import Choose, Purse, Selected
from adaserve.runtime.capture import Capture
from adaserve.runtime.transfer import stage
from adaserve.step import StepPlan
from adaserve.tree import CandidateTree


def select_padded(plan: StepPlan, candidates: CandidateTree, choose: Choose, capture: Capture) -> Selected:
    """Let a selection choose among candidates, of which there are some, at least one node.  [places(n), N]

    Requests are padded to one of a few numbers by such as have no candidates, and so are nodes and prices. What was selected is
    to be read before the next captured call.
    """
    limits, count = plan.limits, places(len(plan.need))
    candidates = candidates.resized(count)
    columns, device = candidates.token.shape[1], candidates.token.device
    nodes = min(limits.nodes, count * columns)  # more cannot be bought
    most = min(power_of_two(max(nodes, 16)), count * columns)  # few numbers: each needs a call of its own
    least = most if nodes == count * columns else 0
    price = limits.price[: nodes + 1]
    price = (*price, *[math.inf] * (most + 1 - len(price))) if price else ()
    idle = [0.0] * (count - len(plan.need))
    numbers = stage([nodes, *plan.need, *idle, *plan.temperature, *idle, *price], device, torch.float64)  # one copy for all

    def run(numbers: Tensor, parent: Tensor, *rest: Tensor) -> Selected:
        amount, need, temperature, price = numbers.split([1, count, count, len(numbers) - 1 - 2 * count])
        purse = Purse(amount[0].long(), price, least, most, limits.per_request, limits.depth, limits.order)
        return choose(CandidateTree(parent, parent, *rest), need, purse, temperature)  # tokens are nothing to go by

    key = "select", choose, count, least, most, limits.per_request, limits.depth, limits.order
    return capture(key, run, numbers, candidates.parent, candidates.depth, candidates.path_prob, candidates.source)
