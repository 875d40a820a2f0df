"""Two drafters in one tree: a draft model's beam, and what followed the latest tokens when they last occurred.

Both propose for the same requests, and tree.merge joins what they say. The model does not read what only look-up proposed, so
after such a node was accepted it has known tokens to catch up with, as after a step without a draft (StepPlan.drafting has them).
"""

from collections.abc import Sequence

from torch import Tensor

from adaserve.runtime.slots import SlotTable
from adaserve.speculation.drafter import Gained
from adaserve.speculation.lookup import LookupDrafter
from adaserve.speculation.model import ModelDrafter
from adaserve.step import Chunk, Placement, StepPlan
from adaserve.tree import CandidateTree, DraftTree, merge


class MixedDrafter:
    """A ModelDrafter and a LookupDrafter that propose together."""

    def __init__(self, model: ModelDrafter, lookup: LookupDrafter) -> None:
        self._model = model
        self._lookup = lookup

    def place(self, placement: Placement) -> None:
        """Tell both."""
        self._model.place(placement)
        self._lookup.place(placement)

    def release(self, slot: int) -> None:
        """Tell both."""
        self._model.release(slot)
        self._lookup.release(slot)

    def forget(self) -> None:
        """Tell both."""
        self._model.forget()
        self._lookup.forget()

    def work(self, plan: StepPlan, catch_up: Sequence[Chunk]) -> tuple[tuple[int, ...], int]:
        """The model's: look-up has none."""
        return self._model.work(plan, catch_up)

    def propose(self, plan: StepPlan, table: SlotTable) -> CandidateTree:
        """The model's d * w columns, then one of look-up for each depth.  [n, d * (w + 1)]"""
        beam = self._model.propose(plan, table).resized(len(plan.decoding))
        return merge(beam, self._lookup.propose(plan, table), plan.depth)

    def prepare(self, plan: StepPlan, table: SlotTable) -> None:
        """What the model can do ahead; look-up needs the tokens on the host."""
        self._model.prepare(plan, table)

    def keep(self, depth: int, table: SlotTable, slot: Tensor, tree: DraftTree, accepted: Tensor) -> None:
        """Keep what the model computed: its columns come first, so their numbers are still their rows in the tail."""
        self._model.keep(depth, table, slot, tree, accepted)

    def learn(self, plan: StepPlan, gained: Gained) -> None:
        """Tell both."""
        self._model.learn(plan, gained)
        self._lookup.learn(plan, gained)
