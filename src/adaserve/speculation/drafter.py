"""The Drafter protocol: whoever proposes candidate trees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from adaserve.runtime.slots import SlotTable
from adaserve.step import Chunk, Drafted, Placement, StepPlan
from adaserve.tree import CandidateTree, DraftTree


@dataclass(frozen=True)
class Gained:
    """What a step brought, told to the drafter once the host knows it.

    tokens: per decoding slot, the tokens gained. first_tokens: (slot, token) of every prompt that is complete.
    """

    tokens: tuple[tuple[int, ...], ...]
    first_tokens: tuple[tuple[int, int], ...]
    drafted: Drafted


class Drafter(Protocol):
    """Proposes trees, and is told what became of them."""

    def place(self, placement: Placement) -> None:
        """A request comes to a slot."""
        ...

    def release(self, slot: int) -> None:
        """A slot's request has gone."""
        ...

    def forget(self) -> None:
        """Drop what is remembered of requests that have gone."""
        ...

    def work(self, plan: StepPlan, catch_up: Sequence[Chunk]) -> tuple[tuple[int, ...], int]:
        """Rows of each pass over a draft model, for a plan's trees and this catch-up, and paged tokens that attention reads."""
        ...

    def propose(self, plan: StepPlan, table: SlotTable) -> CandidateTree:
        """Grow trees of the plan's depth and width for those that draft.  [n, N], or [places(n), N] where the table is padded

        Where it is not, do the plan's catch-up as well.
        """
        ...

    def prepare(self, plan: StepPlan, table: SlotTable) -> None:
        """Where the table is padded: do the plan's catch-up, and begin what the next step will most likely ask for.

        This step's tokens are known to `table`. Enqueues work and waits for nothing: to a GPU it is something to do while the
        host plans.
        """
        ...

    def keep(self, depth: int, table: SlotTable, slot: Tensor, tree: DraftTree, accepted: Tensor) -> None:
        """Keep what was accepted, rows [B] bool of `tree`, whose n requests have these slots [n]; depth: of the speculation.

        Device work alone, for it may be captured. Called before the gained tokens become known to `table`.
        """
        ...

    def learn(self, plan: StepPlan, gained: Gained) -> None:
        """Hear what was gained."""
        ...
