"""What the draft is asked to become, as a gradient in closed form.

With p the target's distribution after a prefix, q the draft's, and e the target's likeliest token as a one-hot vector, the loss
is

    L = (1 - g) KL(p || q) + g CE(e, q)          dL/d logits of q = q - (1 - g) p - g e

KL asks for the whole distribution, which verification at temperature 1 and the beam's path probabilities need; the share g of
cross-entropy to the one token that greedy decoding will produce. A vocabulary has so many logits that keeping them for
automatic differentiation would cost more memory and time than all layers of a draft, so the gradient is formed chunk by chunk
and the logits are dropped; `loss` is the slow twin.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from adaserve.distill.networks import logits

CHUNK = 8192
"""Positions whose logits exist at one time."""


@dataclass(frozen=True)
class Pull:
    """gradient [m, hidden] of the summed loss; distance: the summed, weighted total variation between p and q.

    1 - distance is the probability that a token drawn from the draft would be accepted by rejection sampling: a loss that reads.
    """

    gradient: Tensor
    distance: Tensor


@torch.no_grad()
def pull(student: Tensor, teacher: Tensor, head: Tensor, weight: Tensor, *, greedy: float, chunk: int = CHUNK) -> Pull:
    """Gradient of sum_i weight_i L_i with respect to the draft's hidden states.

    student, teacher [m, hidden]: states after the final norms. head [V, hidden]: shared, in the precision of the products.
    weight [m]. greedy: g.
    """
    gradient = torch.empty_like(student)  # [m, hidden]
    distance = torch.zeros((), dtype=torch.float64, device=student.device)
    rows = _rows_on(student.device)
    for start in range(0, len(student), chunk):
        piece = slice(start, start + chunk)
        taught = logits(teacher[piece], head)  # [c, V]
        scores = functional.linear(student[piece].to(head.dtype), head)  # [c, V]
        distance += (rows(scores, taught, greedy) * weight[piece]).sum()
        gradient[piece] = (scores @ head).to(student.dtype) * weight[piece, None].to(student.dtype)
    return Pull(gradient, distance)


def pull_rows(student: Tensor, teacher: Tensor, greedy: float) -> Tensor:
    """Put dL/d logits in the place of the draft's logits; returns the total variation between p and q of every row.  # [c]

    student, teacher: logits [c, V]. greedy: g.
    """
    best = teacher.argmax(-1, keepdim=True)  # [c, 1]
    p, q = teacher.float().softmax(-1), student.float().softmax(-1)  # [c, V] each
    distance = (q - p).abs().sum(-1) / 2  # [c]
    q.sub_(p, alpha=1 - greedy).scatter_add_(1, best, torch.full_like(best, -greedy, dtype=q.dtype))
    student.copy_(q)
    return distance


def _rows_on(device: torch.device) -> Callable[[Tensor, Tensor, float], Tensor]:
    if device.type != "cuda":
        return pull_rows
    from adaserve.distill import triton_gradient

    return triton_gradient.pull_rows


def loss(student: Tensor, teacher: Tensor, head: Tensor, weight: Tensor, *, greedy: float) -> Tensor:
    """The loss whose gradient `pull` forms, for automatic differentiation."""
    log_q = functional.linear(student, head).log_softmax(-1)  # [m, V]
    scores = functional.linear(teacher, head)  # [m, V]
    log_p = scores.log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)  # [m]
    surprise = -log_q.gather(1, scores.argmax(-1, keepdim=True))[:, 0]  # [m]
    return (weight * ((1 - greedy) * divergence + greedy * surprise)).sum()
