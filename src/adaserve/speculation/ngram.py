"""The n-gram drafter (prompt look-up): proposes what followed the latest tokens when they last occurred in the same request.

It needs no model, and does well where output repeats input: code edits, summaries, retrieval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adaserve.runtime.transfer import upload
from adaserve.step import Drafted
from adaserve.tree import MAX_NODES, ROOT, CandidateTree, Source

Gram = tuple[int, ...]


@dataclass(frozen=True)
class Continuation:
    """What may follow, and the size of the n-gram that it followed before; 0 where nothing was found."""

    tokens: list[int]
    size: int


class NgramIndex:
    """The known tokens of one request, and where each of its n-grams was last continued. O(1) per token and n-gram size."""

    def __init__(self, shortest: int, longest: int) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._tokens: list[int] = []
        self._next: dict[Gram, int] = {}  # n-gram -> index of the token that followed its latest occurrence

    def append(self, tokens: Sequence[int]) -> None:
        """Take in tokens that have become known."""
        first = len(self._tokens)
        self._tokens += tokens
        for size in self._sizes:
            # An n-gram counts once something follows it, so a look-up never finds the suffix itself: zip drops the last one.
            start = max(first - size, 0)
            window = self._tokens[start:]
            grams = zip(*(window[offset:] for offset in range(size)), strict=False)
            self._next.update(zip(grams, range(start + size, len(self._tokens)), strict=False))

    def continuation(self, length: int) -> Continuation:
        """Propose `length` tokens to follow the known ones; none when no suffix of an allowed size occurred before.

        The longest such suffix decides, at its latest occurrence. Where the copy runs into the end of the known tokens, it goes
        on with what it has proposed itself: a loop keeps looping.
        """
        known = self._tokens
        for size in self._sizes:
            start = self._next.get(tuple(known[-size:])) if size <= len(known) else None
            if start is not None:
                period = len(known) - start
                return Continuation([known[start + step % period] for step in range(length)], size)
        return Continuation([], 0)


class HitRate:
    """How often a proposal was accepted once its parent was, per depth: accepted / tried, starting from a prior."""

    def __init__(self, prior: float = 0.6, weight: float = 8.0, horizon: float = 2000.0) -> None:
        self._prior = prior
        self._weight = weight
        self._horizon = horizon
        self._tried = [0.0] * (MAX_NODES + 1)  # by depth
        self._accepted = [0.0] * (MAX_NODES + 1)

    def learn(self, depth: int, accepted: bool) -> None:
        """Count one proposal whose parent was accepted. Beyond the horizon, in trials, old ones fade as new ones come."""
        if self._tried[depth] >= self._horizon:
            fade = 1 - 1 / self._horizon
            self._tried[depth] *= fade
            self._accepted[depth] *= fade
        self._tried[depth] += 1
        self._accepted[depth] += accepted

    def rate(self, depth: int) -> float:
        """The estimated conditional acceptance at `depth`, in (0, 1)."""
        return (self._accepted[depth] + self._prior * self._weight) / (self._tried[depth] + self._weight)

    def path_probs(self, depth: int) -> list[float]:
        """f of a chain's nodes at depths 1 to `depth`: products of the rates, so it never rises."""
        probs, f = [], 1.0
        for step in range(1, depth + 1):
            f *= self.rate(step)
            probs.append(f)
        return probs


class NgramDrafter:
    """Proposes one chain per request by prompt look-up, with acceptance learned online.

    shortest, longest: sizes of the suffixes that are looked up, in tokens.
    """

    def __init__(self, shortest: int = 2, longest: int = 4) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-gram sizes must satisfy 1 <= shortest <= longest, got {shortest} and {longest}")
        self._shortest = shortest
        self._longest = longest
        self._indices: dict[int, NgramIndex] = {}
        self._sizes: dict[int, int] = {}  # slot -> size of the n-gram that its latest proposal followed
        self._hits = [HitRate() for _ in range(longest + 1)]  # by that size: what followed more is likelier to follow again

    def place(self, slot: int, tokens: Sequence[int]) -> None:
        """Start a slot with its known tokens, prompt first; whatever the slot held is forgotten."""
        self._indices[slot] = NgramIndex(self._shortest, self._longest)
        self.append(slot, tokens)

    def append(self, slot: int, tokens: Sequence[int]) -> None:
        """Tell the tokens that a slot has gained."""
        self._indices[slot].append(tokens)

    def release(self, slot: int) -> None:
        """Forget a slot; one that holds nothing is fine."""
        self._indices.pop(slot, None)
        self._sizes.pop(slot, None)

    def propose(
        self, slots: Sequence[int], depth: int, room: Sequence[int], drafting: Sequence[bool], device: torch.device | str = "cpu"
    ) -> CandidateTree:
        """Propose chains of up to `depth` tokens for the n slots, one column per depth.

        room: deepest node that each slot may use; drafting: whether it drafts at all. Raises ValueError for depth > MAX_NODES.
        """
        if not 0 <= depth <= MAX_NODES:
            raise ValueError(f"an n-gram chain's depth must be in [0, {MAX_NODES}], got {depth}")
        f = [hits.path_probs(depth) for hits in self._hits]
        token: list[list[int]] = []
        prob: list[list[float]] = []
        for slot, deepest, drafts in zip(slots, room, drafting, strict=True):
            length = max(min(depth, deepest), 0) if drafts else 0
            found = self._indices[slot].continuation(length)
            self._sizes[slot] = found.size
            padding = depth - len(found.tokens)
            token.append(found.tokens + [0] * padding)
            prob.append(f[found.size][: len(found.tokens)] + [0.0] * padding)
        shape = (len(slots), depth)
        column = torch.arange(depth, device=device)
        return CandidateTree(
            token=upload(token, torch.device(device)).view(shape),
            parent=(column + ROOT).expand(shape),  # a chain: ROOT is the column before the first
            depth=(column + 1).expand(shape),
            path_prob=upload(prob, torch.device(device), torch.float64).view(shape),
            source=torch.full(shape, int(Source.NGRAM), device=device),
        )

    def learn(self, drafted: Drafted, slots: Sequence[int]) -> None:
        """Learn from a step's outcome how often proposals of its own alone are accepted; slots: of the requests that decoded."""
        nodes = zip(drafted.request, drafted.depth, drafted.source, drafted.reached, drafted.accepted, strict=True)
        for request, depth, source, reached, accepted in nodes:
            if reached and source == Source.NGRAM:
                self._hits[self._sizes[slots[request]]].learn(depth, accepted)
