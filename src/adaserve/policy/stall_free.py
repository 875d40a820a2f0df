"""Stall-free batching: Sarathi-Serve's scheduling (Agrawal et al., OSDI'24, arXiv 2403.02310)."""

from dataclasses import dataclass

from adaserve.policy.policy import Demand, RowShare


@dataclass(frozen=True)
class StallFree:
    """Every step decodes all requests; prompt chunks fill it up to a budget of tokens.

    token_budget: rows of a step, those that decode included; the larger, the sooner prompts end and the longer each step takes.
    most_prompt_rows: bounds the prompt rows besides; None leaves that to the budget.
    """

    token_budget: int
    most_prompt_rows: int | None = None

    @property
    def deepest(self) -> int:
        return 0

    def share(self, demand: Demand) -> RowShare:
        left = max(0, self.token_budget - demand.decoding)
        prompt_rows = left if self.most_prompt_rows is None else min(left, self.most_prompt_rows)
        return RowShare(decode=True, prompt_rows=prompt_rows, budget=self.token_budget, depth=0, width=1)
