"""vLLM's classic scheduling: waiting prompts are computed first and alone; then all requests decode together."""

from dataclasses import dataclass

from adaserve.policy.policy import Demand, Share


@dataclass(frozen=True)
class PrefillFirst:
    """Whole prompts first, without decoding beside them, then plain decoding (length 0) or chains of `length` draft tokens.

    most_prompt_rows is vLLM's max_num_batched_tokens.
    """

    length: int = 0
    most_prompt_rows: int = 2048

    @property
    def deepest(self) -> int:
        return self.length

    def share(self, demand: Demand) -> Share:
        return Share(
            decode=demand.prompt == 0,
            prompt_rows=self.most_prompt_rows,
            budget=demand.decoding * (1 + self.length),
            depth=self.length,
            width=1,
        )
