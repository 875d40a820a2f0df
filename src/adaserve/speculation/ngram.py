"""The n-gram drafter (prompt look-up): proposes what followed the latest tokens when they last occurred.

In the same request; where it has a memory of its tenant's texts, also in those. It needs no model, and does well where output
repeats what was said: code edits, summaries, retrieval, and with a memory prompts that come again.
"""

from collections.abc import Sequence

import torch

from adaserve.runtime.transfer import upload
from adaserve.speculation.index import Continuation, NgramIndex
from adaserve.speculation.recall import TenantMemories
from adaserve.step import Drafted
from adaserve.tree import MAX_NODES, ROOT, CandidateTree, Source


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
    """Proposes one chain per request by look-up, with acceptance learned online.

    shortest, longest: sizes of the suffixes that are looked up in the request's own text, in tokens. memories: of its tenant's
    texts, in which a longer suffix than its own text has decides; None looks no further than that.
    """

    def __init__(self, shortest: int = 2, longest: int = 4, memories: TenantMemories | None = None) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-gram sizes must satisfy 1 <= shortest <= longest, got {shortest} and {longest}")
        if memories is not None and memories.longest > longest:
            raise ValueError(f"memories find up to {memories.longest} tokens, but a request's own text only {longest}")
        self._shortest = shortest
        self._longest = longest
        self._memories = memories
        self._indices: dict[int, NgramIndex] = {}
        self._tenants: dict[int, str] = {}  # slot -> its tenant's salt
        # By the size of the n-gram that a proposal followed, for what followed more is likelier to follow again, and by where.
        self._own = [HitRate() for _ in range(longest + 1)]
        self._recalled = [HitRate() for _ in range(longest + 1)]
        self._hits: dict[int, HitRate] = {}  # slot -> what its latest proposal counts for

    def place(self, slot: int, tokens: Sequence[int], tenant: str = "") -> None:
        """Start a slot with its known tokens, prompt first; whatever the slot held is forgotten. tenant: whose request it is."""
        self.release(slot)
        self._indices[slot] = NgramIndex(self._shortest, self._longest)
        self._tenants[slot] = tenant
        self.append(slot, tokens)

    def append(self, slot: int, tokens: Sequence[int]) -> None:
        """Tell the tokens that a slot has gained."""
        self._indices[slot].append(tokens)
        if self._memories is not None:
            self._memories.of(self._tenants[slot]).append(slot, tokens)

    def release(self, slot: int) -> None:
        """Forget a slot, though not what its tenant's memory has of it; one that holds nothing is fine."""
        self._indices.pop(slot, None)
        self._hits.pop(slot, None)
        tenant = self._tenants.pop(slot, None)
        if self._memories is not None and tenant is not None:
            self._memories.end(tenant, slot)

    def forget(self) -> None:
        """Drop all memories of tenants."""
        if self._memories is not None:
            self._memories.forget()

    def propose(
        self, slots: Sequence[int], depth: int, room: Sequence[int], drafting: Sequence[bool], device: torch.device | str = "cpu"
    ) -> CandidateTree:
        """Propose chains of up to `depth` tokens for the n slots, one column per depth.

        room: deepest node that each slot may use; drafting: whether it drafts at all. Raises ValueError for depth > MAX_NODES.
        """
        if not 0 <= depth <= MAX_NODES:
            raise ValueError(f"an n-gram chain's depth must be in [0, {MAX_NODES}], got {depth}")
        own, recalled = ([hits.path_probs(depth) for hits in by_size] for by_size in (self._own, self._recalled))
        token: list[list[int]] = []
        prob: list[list[float]] = []
        for slot, deepest, drafts in zip(slots, room, drafting, strict=True):
            length = max(min(depth, deepest), 0) if drafts else 0
            found, elsewhere = self._continuation(slot, length)
            self._hits[slot] = (self._recalled if elsewhere else self._own)[found.size]
            padding = depth - len(found.tokens)
            token.append(found.tokens + [0] * padding)
            prob.append((recalled if elsewhere else own)[found.size][: len(found.tokens)] + [0.0] * padding)
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
                self._hits[slots[request]].learn(depth, accepted)

    def _continuation(self, slot: int, length: int) -> tuple[Continuation, bool]:
        """What may follow by the longest suffix that is known, and whether it is known from elsewhere than the request itself."""
        index = self._indices[slot]
        own = index.continuation(length)
        if self._memories is None or not length:
            return own, False
        found = self._memories.of(self._tenants[slot]).continuation(index.known[-self._longest :], length, beyond=own.size)
        return (found, True) if found.size else (own, False)
