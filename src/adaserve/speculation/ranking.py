"""How a draft model ranks what may come next: by its own probabilities, or coupled to the target's draws.

The target draws argmax of logit + T g; the noise g is a function of (seed, choice, position, token) alone (runtime/noise.py).
The draft can compute the same g before it proposes. So it need not guess which of the likely tokens comes; it need only agree
with the target's logits, up to an error, on the winner of one and the same race:

    plain     f(v) = softmax(logit / T)       the draft's probability, under 1 at temperature 0
    coupled   f(v) = softmax(logit + T g)     the probability that v wins when the target's logits are the draft's plus errors,
                                              independent and of the standard Gumbel distribution

At temperature 0 both are the same. What a coupled draft says is a probability given the noise, so it multiplies along paths and
compares across requests as f must. (Agreement of two samplers through common noise: arXiv 2408.07978.)

Bias, penalties and truncation act on the target's draws alone: a draft that knew them would match more often, not be more right.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adaserve.kernels.perturb import perturb
from adaserve.kernels.top import top_tokens
from adaserve.runtime.noise import noise_key
from adaserve.runtime.slots import SlotTable
from adaserve.runtime.table import signed_word
from adaserve.step import Placement


class Ranking:
    """The sampling parameters of all slots, as far as a draft minds them; the spare slot, of padding, comes last."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self._temperature = torch.zeros(slots + 1, dtype=torch.float64, device=device)  # [slots + 1]
        self._inverse = torch.ones_like(self._temperature)  # 1 / T, and 1 at temperature 0
        self._seed = torch.zeros(slots + 1, dtype=torch.int64, device=device)  # [slots + 1]
        self._choice = torch.zeros_like(self._seed)
        self._random: set[int] = set()  # slots of temperature above 0

    def place(self, placement: Placement) -> None:
        """A request comes to a slot. Fills wait for nothing; an assigned number would be copied from the host, which does."""
        slot, temperature = placement.slot, placement.sampling.temperature
        self._temperature[slot].fill_(temperature)
        self._inverse[slot].fill_(1 / temperature if temperature > 0 else 1.0)
        self._seed[slot].fill_(signed_word(placement.seed))
        self._choice[slot].fill_(placement.choice)
        if temperature > 0:
            self._random.add(slot)
        else:
            self._random.discard(slot)

    def draws(self, slots: tuple[int, ...]) -> bool:
        """Whether any of these slots' requests draws at random: coupling changes nothing for the others."""
        return not self._random.isdisjoint(slots)

    def of(self, slot: Tensor, table: SlotTable, depth: int, coupled: bool) -> "Ranked":
        """What matters of the requests on `slot` [a] for trees of this depth."""
        if not coupled:
            return Ranked(self._inverse[slot], self._temperature[slot], None)
        # The root is the last known token, so its children are drawn at the position `known`, as in DrawRows.of.
        position = table.known[slot] + torch.arange(depth, device=slot.device)[:, None]  # [d, a]
        key = noise_key(self._seed[slot], self._choice[slot], position)  # [d, a]
        temperature = self._temperature[slot]  # [a]
        return Ranked(torch.ones_like(temperature), temperature, key)


@dataclass(frozen=True)
class Ranked:
    """How some requests' drafts rank, for trees of depth d.

    inverse [a] float64: one over the temperature of the softmax. temperature [a] float64: of the draws. key [d, a] int64: names
    of the noise at every depth (noise.noise_key), to be added times the temperature; None: none is.
    """

    inverse: Tensor
    temperature: Tensor
    key: Tensor | None

    def likeliest(self, logits: Tensor, depth: int, width: int) -> tuple[Tensor, Tensor]:
        """The w likeliest next tokens of every row, and log f of each given that the row itself is right: [a, r, w] each.

        logits [a * r, V]: r rows of each request. depth: of the tokens that follow, 1 for roots' children.
        """
        requests = len(self.inverse)
        rows = logits.shape[0] // requests
        if self.key is not None:
            key = self.key[depth - 1].repeat_interleave(rows)  # [a * r]
            logits = perturb(logits, self.temperature.repeat_interleave(rows), key)
        scale = self.inverse.repeat_interleave(rows)  # [a * r]
        token, log_prob = top_tokens(logits, scale, min(width, logits.shape[1]))  # [a * r, w]
        return token.view(requests, rows, -1), log_prob.view(requests, rows, -1)
