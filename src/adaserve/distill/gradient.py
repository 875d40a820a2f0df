"""What the draft is asked to become, as a gradient in closed form.

With p the target's distribution after a prefix, q the draft's, and e the target's likeliest token as a one-hot vector, the loss
is

    L = (1 - g) KL(p || q) + g CE(e, q)          dL/d logits of q = q - (1 - g) p - g e

KL asks for the whole distribution, which verification at temperature 1 and the beam's path probabilities need; the share g of
cross-entropy to the one token that greedy decoding will produce. A vocabulary has so many logits that keeping them for
automatic differentiation would cost more memory and time than all layers of a draft, so the gradient is formed chunk by chunk
and the logits are dropped; `loss` is the slow twin.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

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
    for start in range(0, len(student), chunk):
        piece = slice(start, start + chunk)
        scores = functional.linear(teacher[piece].to(head.dtype), head)  # [c, V]
        best = scores.argmax(-1, keepdim=True)  # [c, 1]
        p = scores.softmax(-1)  # [c, V]; sums in float32 inside
        q = functional.linear(student[piece].to(head.dtype), head).softmax(-1)  # [c, V]
        w = weight[piece, None].to(student.dtype)  # [c, 1]
        difference = q - p  # [c, V]
        distance += (difference.abs().sum(-1, dtype=torch.float32) * w[:, 0]).sum() / 2
        if greedy:
            difference.add_(p, alpha=greedy).scatter_add_(1, best, torch.full_like(best, -greedy, dtype=p.dtype))
        gradient[piece] = (difference @ head).to(student.dtype) * w
    return Pull(gradient, distance)


def loss(student: Tensor, teacher: Tensor, head: Tensor, weight: Tensor, *, greedy: float) -> Tensor:
    """The loss whose gradient `pull` forms, for automatic differentiation."""
    log_q = functional.linear(student, head).log_softmax(-1)  # [m, V]
    scores = functional.linear(teacher, head)  # [m, V]
    log_p = scores.log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)  # [m]
    surprise = -log_q.gather(1, scores.argmax(-1, keepdim=True))[:, 0]  # [m]
    return (weight * ((1 - greedy) * divergence + greedy * surprise)).sum()
