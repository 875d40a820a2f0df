"""What verification leaves for commit: of a step that was planned, or of one that was run ahead of its plan."""

from dataclasses import dataclass, replace

from torch import Tensor

from adaserve.runtime.sampling import Draws
from adaserve.runtime.stopwatch import Stopwatch
from adaserve.runtime.transfer import Bundle
from adaserve.step import StepPlan, Verdict
from adaserve.tree import DraftTree


@dataclass(frozen=True)
class Trace:
    """What verification found; draws and logits have the trees' rows first, then those of drawing chunks."""

    tree: DraftTree
    draws: Draws
    logits: Tensor  # [B + C, V]
    verdict: Verdict
    results: Bundle

    def without_logits(self) -> "Trace":
        """The same for a graph to keep, which would keep their memory to itself."""
        return replace(self, logits=self.logits.new_empty(0, self.logits.shape[1]))


@dataclass(frozen=True)
class Ahead:
    """The verification of a plain step that was promised and is not planned yet: work for the device while the host plans.

    slots: whose last tokens were read, in the order of the trace. watch: how long it takes.
    """

    slots: tuple[int, ...]
    trace: Trace
    watch: Stopwatch

    def serves(self, plan: StepPlan) -> bool:
        """Whether the plan asks for this and nothing else, for these requests or those that are left of them.

        Whoever is missing must have left its slot: the tables know the token that was drawn for it, of which nobody would hear.
        """
        slots, asked = set(self.slots), set(plan.decoding)
        return not (plan.depth or plan.chunks or plan.placed) and asked <= slots and slots - asked <= set(plan.released)

    def rows(self, plan: StepPlan) -> list[int]:
        """Where the plan's requests stand in the trace."""
        place = {slot: row for row, slot in enumerate(self.slots)}
        return [place[slot] for slot in plan.decoding]
