"""The n-gram drafter as a Drafter: no model, no cache, host work only."""

from collections.abc import Sequence

from torch import Tensor

from adaserve.runtime.slots import SlotTable
from adaserve.speculation.drafter import Gained
from adaserve.speculation.ngram import NgramDrafter
from adaserve.step import Chunk, Placement, StepPlan
from adaserve.tree import CandidateTree, DraftTree


class LookupDrafter:
    """Feeds an NgramDrafter with the tokens that requests gain."""

    def __init__(self, ngrams: NgramDrafter) -> None:
        self._ngrams = ngrams

    def place(self, placement: Placement) -> None:
        """Index the request's known tokens."""
        self._ngrams.place(placement.slot, placement.tokens, placement.cache_salt)

    def release(self, slot: int) -> None:
        """Forget the slot's tokens."""
        self._ngrams.release(slot)

    def forget(self) -> None:
        """Forget what tenants said before."""
        self._ngrams.forget()

    def work(self, plan: StepPlan, catch_up: Sequence[Chunk]) -> tuple[tuple[int, ...], int]:
        """None: there is no model."""
        return (), 0

    def propose(self, plan: StepPlan, table: SlotTable) -> CandidateTree:
        """One chain of up to d tokens for every request that drafts.  [n, d]"""
        drafting = [chunk is not None for chunk in plan.drafting]
        return self._ngrams.propose(plan.decoding, plan.depth, plan.room, drafting, table.device)

    def prepare(self, plan: StepPlan, table: SlotTable) -> None:
        """Nothing: look-up needs the tokens on the host."""

    def keep(self, depth: int, table: SlotTable, slot: Tensor, tree: DraftTree, accepted: Tensor) -> None:
        """Nothing: there is no cache."""

    def learn(self, plan: StepPlan, gained: Gained) -> None:
        """Index what was gained, and learn how often proposals were right."""
        for slot, tokens in (*zip(plan.decoding, gained.tokens, strict=True), *((s, (t,)) for s, t in gained.first_tokens)):
            self._ngrams.append(slot, tokens)
        self._ngrams.learn(gained.drafted, plan.decoding)
