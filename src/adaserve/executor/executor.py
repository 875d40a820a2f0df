"""The Executor protocol: the only seam between real and simulated execution."""

from typing import Protocol

from torch import Tensor

from adaserve.padding import Padding
from adaserve.purse import Choose, Selected
from adaserve.step import StepOutcome, StepPlan, Verdict
from adaserve.tree import CandidateTree


class Executor(Protocol):
    """Carries out the phases of one step, in this order. Nothing but the outcome of `commit` reaches the host."""

    @property
    def padding(self) -> Padding:
        """How many rows its passes compute for those that are needed."""
        ...

    @property
    def runs_ahead(self) -> bool:
        """Whether a device works while the host does something else.

        Then the next step is begun before the last one's news is told, and computed before it is planned where the plan before it
        promises that (StepPlan.again).
        """
        ...

    def forget(self) -> None:
        """Another engine begins: drop what was remembered of requests that have gone, so that it owes the last one nothing."""
        ...

    def speculate(self, plan: StepPlan) -> CandidateTree:
        """Let the drafter propose a tree for every decoding request: d beam steps of width w.  [n, N]

        Trees of padding may follow, of requests that do not exist; then what is selected has rows for them too.
        """
        ...

    def select(self, plan: StepPlan, candidates: CandidateTree, choose: Choose) -> Selected:
        """Let the policy's selection choose among the candidates: as many rows as these have.  [n, N]"""
        ...

    def verify(self, plan: StepPlan, candidates: CandidateTree, chosen: Tensor) -> Verdict:
        """Check the chosen nodes [n, N] bool of all trees, and compute the prompt chunks, in one pass of the target."""
        ...

    def commit(self, plan: StepPlan, verdict: Verdict) -> StepOutcome:
        """Keep the accepted paths' keys and values; bring the tokens to the host."""
        ...

    def close(self) -> None:
        """Let go of what was captured of the passes; no step comes after this. Harmless when done before."""
        ...
