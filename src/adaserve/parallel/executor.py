"""Executors of several ranks: rank 0's, which leads, and the loop of the others, which follow.

    rank 0       speculate           select    words of the trees ─┐   verify   commit
                     │ Plan                        │ Tree           │ broadcast     │ Commit
    other ranks      └▶ slots, pages, sampling     └────────────────┴▶ verify       └▶ commit

Around each rank's own executor, which is the same as of one rank: the draft model lives on rank 0 alone, so the others have no
drafter. Verification runs on all ranks in lock-step. Everything after the passes (draws with keyed noise from joined logits, the
walk, what becomes known) is a fixed function of numbers that all ranks share bit by bit, so each rank computes it for itself, and
nothing has to come back.
"""

from typing import TypeVar

import torch
from torch import Tensor

from adaserve.errors import EngineFailed
from adaserve.executor.executor import Executor
from adaserve.padding import Padding
from adaserve.parallel.group import Group
from adaserve.parallel.messages import Commit, Link, Message, Plan, Tree
from adaserve.parallel.ranks import Ranks
from adaserve.purse import Choose, Selected
from adaserve.step import StepOutcome, StepPlan, Verdict
from adaserve.tree import CandidateTree

_PARENT, _DEPTH, _CHOSEN = 32, 46, 60
"""Where a candidate's word has its parent + 1, its depth and whether it was chosen; its token comes first."""


M = TypeVar("M", bound=Message)


class Leader:
    """Rank 0's executor: tells the other ranks what it does, and does it. Raises EngineFailed when one of them has gone."""

    def __init__(self, inner: Executor, group: Group, ranks: Ranks) -> None:
        self._inner = inner
        self._group = group
        self._ranks = ranks

    @property
    def padding(self) -> Padding:
        """As of the executor that it leads."""
        return self._inner.padding

    @property
    def runs_ahead(self) -> bool:
        """As the executor that it leads; the others do as it does, for the plan says so."""
        return self._inner.runs_ahead

    def forget(self) -> None:
        """Drop what this rank's drafter remembers: the others have none."""
        self._inner.forget()

    def speculate(self, plan: StepPlan) -> CandidateTree:
        """Send the plan; speculate, alone."""
        with self._ranks.watched():
            self._ranks.send(Plan(plan))
            return self._inner.speculate(plan)

    def select(self, plan: StepPlan, candidates: CandidateTree, choose: Choose) -> Selected:
        """Select, alone: the other ranks hear with the trees what was chosen."""
        return self._inner.select(plan, candidates, choose)

    def verify(self, plan: StepPlan, candidates: CandidateTree, chosen: Tensor) -> Verdict:
        """Send the trees; verify, together."""
        with self._ranks.watched():
            self._ranks.send(Tree(*candidates.token.shape))
            if candidates.token.numel() > 0:
                self._group.broadcast(tree_words(candidates, chosen))
            return self._inner.verify(plan, candidates, chosen)

    def commit(self, plan: StepPlan, verdict: Verdict) -> StepOutcome:
        """Commit; what a rank computed together with one that has died would mean nothing."""
        with self._ranks.watched():
            self._ranks.send(Commit())
            outcome = self._inner.commit(plan, verdict)
            self._ranks.check()
            return outcome

    def close(self) -> None:
        """Let go of what this rank captured; the others end with their processes."""
        self._inner.close()


@torch.inference_mode()
def follow(executor: Executor, group: Group, link: Link, device: torch.device) -> None:
    """Run the steps of another rank than 0 until rank 0 hangs up."""
    while (message := link.hear()) is not None:
        plan = _expect(message, Plan).plan
        executor.speculate(plan)  # without a drafter: what the plan says of slots and pages
        message = link.hear()
        if message is None:
            return
        tree = _expect(message, Tree)
        words = torch.zeros(tree.requests, tree.columns, dtype=torch.int64, device=device)  # [n, N]
        if words.numel() > 0:
            group.broadcast(words)
        verdict = executor.verify(plan, *tree_of(words))
        message = link.hear()
        if message is None:
            return
        _expect(message, Commit)
        executor.commit(plan, verdict)


def tree_words(candidates: CandidateTree, chosen: Tensor) -> Tensor:
    """What other ranks need of the candidates, a word each: [n, N] int64. chosen [n, N] bool.

    A tree of 64 requests with 24 candidates each takes 12 KB. Columns and depths are below 2^14.
    """
    place = (candidates.parent + 1) << _PARENT | candidates.depth << _DEPTH
    return candidates.token | place | chosen.long() << _CHOSEN


def tree_of(words: Tensor) -> tuple[CandidateTree, Tensor]:
    """The candidates and the choice that were put into words [n, N]; probabilities and sources stay with rank 0."""
    parent = ((words >> _PARENT) & ((1 << _DEPTH - _PARENT) - 1)) - 1
    depth = (words >> _DEPTH) & ((1 << _CHOSEN - _DEPTH) - 1)
    chosen = (words >> _CHOSEN) > 0
    return CandidateTree(words & ((1 << _PARENT) - 1), parent, depth, chosen.double(), torch.zeros_like(words)), chosen


def _expect(message: Message, kind: type[M]) -> M:
    if not isinstance(message, kind):
        raise EngineFailed(f"a rank heard {type(message).__name__} where {kind.__name__} follows")
    return message
