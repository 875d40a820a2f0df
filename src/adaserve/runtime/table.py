"""SamplingTable: the sampling parameters of the requests on the slots, as device tensors and as flags that the host knows.

Written once when a request comes to a slot and read by every draw. The flags tell a draw, without asking the device, which
kinds of processing any of its requests needs; what none needs costs nothing.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adaserve.request import SamplingParams
from adaserve.runtime.transfer import upload
from adaserve.step import Placement

NEUTRAL = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
"""temperature, top_p, min_p, presence, frequency and repetition of plain greedy drawing."""
NOTHING = (0, 0, 0, 0, 0)
"""seed, choice, top_k, prompt_length and shortest of a slot that nobody has had."""


@dataclass(frozen=True)
class Traits:
    """Which kinds of processing a set of requests needs.

    most_k: at least the largest top_k among them, a power of two, for captured calls know it by heart; 0 if none truncates so.
    """

    noise: bool = False
    bias: bool = False
    history: bool = False
    minimum: bool = False
    truncation: bool = False
    most_k: int = 0

    @property
    def edits_logits(self) -> bool:
        """Whether logits are changed before the draw, which needs a copy of them; truncation happens within the draw."""
        return self.bias or self.history or self.minimum

    def __or__(self, other: "Traits") -> "Traits":
        return Traits(
            self.noise or other.noise,
            self.bias or other.bias,
            self.history or other.history,
            self.minimum or other.minimum,
            self.truncation or other.truncation,
            max(self.most_k, other.most_k),
        )


class SparseRows:
    """A short list of (token id, number) for each slot, as padded tensors that grow with the longest list.

    ids [slots, W] int64, numbers [slots, W] float64. Padding repeats the slot's first id (0 if it has none) with number 0.
    """

    def __init__(self, slots: int, device: torch.device | str) -> None:
        self.ids = torch.zeros(slots, 1, dtype=torch.int64, device=device)
        self.numbers = torch.zeros(slots, 1, dtype=torch.float64, device=device)

    def set(self, slot: int, entries: dict[int, float]) -> None:
        """Give a slot its list."""
        missing = len(entries) - self.ids.shape[1]
        if missing > 0:
            # What is added repeats the first id, as padding does.
            self.ids = torch.cat([self.ids, self.ids[:, :1].expand(-1, missing)], dim=1)
            self.numbers = torch.nn.functional.pad(self.numbers, (0, missing))
        padding = self.ids.shape[1] - len(entries)
        first = next(iter(entries), 0)
        device = self.ids.device
        self.ids[slot] = upload([*entries, *[first] * padding], device)
        self.numbers[slot] = upload([*entries.values(), *[0.0] * padding], device, torch.float64)


class SamplingTable:
    """Sampling parameters of all slots.

    temperature, top_p, min_p, presence, frequency, repetition: [slots] float64. seed, choice, top_k, prompt_length: [slots]
    int64. shortest: [slots] int64, the first absolute position at which a stop id may be drawn. edits: [slots] bool, whether the
    slot's logits are changed before the draw. bias, stops: SparseRows. every_slot: [slots] int64, counting up.
    """

    def __init__(self, slots: int, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size = vocab_size
        # A slot's numbers lie side by side, fractions by their bits, so that one copy writes them all.
        self._words = torch.tensor(_as_words(NEUTRAL, NOTHING), device=device).repeat(slots, 1)  # [slots, 11]
        numbers, integers = self._words.split([len(NEUTRAL), len(NOTHING)], 1)
        fractions = numbers.view(torch.float64)
        self.temperature, self.top_p, self.min_p, self.presence, self.frequency, self.repetition = fractions.unbind(1)
        self.seed, self.choice, self.top_k, self.prompt_length, self.shortest = integers.unbind(1)
        self.edits = torch.zeros(slots, dtype=torch.bool, device=device)
        self.bias, self.stops = SparseRows(slots, device), SparseRows(slots, device)
        self.every_slot = torch.arange(slots, device=device)
        self._traits: dict[int, Traits] = {}
        self._kinds: dict[Traits, Traits] = {}

    def place(self, placement: Placement) -> None:
        """Write a request's parameters to its slot. Token ids outside the vocabulary are left out: they cannot be drawn."""
        slot, sampling = placement.slot, placement.sampling
        stops = {token: 0.0 for token in placement.stop_ids if token < self.vocab_size}
        bias = {token: number for token, number in sampling.logit_bias.items() if token < self.vocab_size}
        traits = _traits(sampling, bool(bias), bool(stops))
        traits = self._kinds.setdefault(traits, traits)
        penalties = sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty
        # Without stop ids there is nothing to forbid, and the row of a former request's ids must not be looked at.
        shortest = placement.prompt_length + sampling.min_tokens if traits.minimum else 0
        numbers = sampling.temperature, sampling.top_p, sampling.min_p, *penalties
        integers = signed_word(placement.seed), placement.choice, sampling.top_k, placement.prompt_length, shortest
        self._words[slot] = upload(_as_words(numbers, integers), self.edits.device)
        self.edits[slot].fill_(traits.edits_logits)  # an assigned bool would be copied from the host, which waits
        if traits.bias or (slot in self._traits and self._traits[slot].bias):
            self.bias.set(slot, bias)
        if traits.minimum:
            self.stops.set(slot, stops)
        self._traits[slot] = traits

    def release(self, slot: int) -> None:
        """A slot's request has gone: nobody draws from the slot until another comes, whose parameters replace its own."""
        before = self._traits.pop(slot, None)
        if before is not None and before.bias:
            self.bias.set(slot, {})

    def traits(self, slots: tuple[int, ...]) -> Traits:
        """Say what the requests on these slots need together."""
        union = last = Traits()
        for slot in slots:
            traits = self._traits[slot]
            if traits is not last:  # mostly it is, for like traits are one object
                union, last = union | traits, traits
        return union


def _as_words(numbers: Sequence[float], integers: Sequence[int]) -> list[int]:
    """Fractions by the bits of float64, then integers: all as int64 holds them."""
    return [*array("q", array("d", numbers).tobytes()), *integers]


def signed_word(seed: int) -> int:
    """The 64-bit word of a seed as int64 holds it."""
    return (seed + 2**63) % 2**64 - 2**63


def _traits(sampling: SamplingParams, bias: bool, stops: bool) -> Traits:
    """Say what a request needs. A greedy one needs no truncation: its argmax survives it."""
    random = sampling.temperature > 0
    most_k = 1 << (sampling.top_k - 1).bit_length() if random and sampling.top_k > 0 else 0
    return Traits(
        noise=random,
        bias=bias,
        history=sampling.uses_history,
        minimum=stops and sampling.min_tokens > 0,
        truncation=random and (most_k > 0 or sampling.top_p < 1 or sampling.min_p > 0),
        most_k=most_k,
    )
