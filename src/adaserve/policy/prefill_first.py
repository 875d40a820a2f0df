"""vLLM's classic scheduling: waiting prompts are computed first and alone; then all requests decode together."""

from dataclasses import dataclass

from adaserve.policy.policy import Demand, RowShare


@dataclass(frozen=True)
class PrefillFirst:
    """Whole prompts first, without decoding beside them; then plain decoding (depth 0), or drafts of a fixed size.

    depth, width: of every request's draft; width 1 drafts chains of `depth` tokens.
    most_prompt_rows is vLLM's max_num_batched_tokens.
    most_rows: bounds the rows of roots and drafts together; None has every draft verified whole.
    """

    depth: int = 0
    width: int = 1
    most_prompt_rows: int = 2048
    most_rows: int | None = None

    @property
    def deepest(self) -> int:
        return self.depth

    def share(self, demand: Demand) -> RowShare:
        rows = demand.decoding * (1 + self.depth * self.width)
        return RowShare(
            decode=demand.prompt == 0,
            prompt_rows=self.most_prompt_rows,
            budget=rows if self.most_rows is None else min(rows, self.most_rows),
            depth=self.depth,
            width=self.width,
        )
