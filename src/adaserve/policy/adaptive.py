"""The paper's scheduling: depth and width follow the number of requests (Eq. 8 and 9); prompt chunks ride along."""

from dataclasses import dataclass

from adaserve.errors import InvalidConfig
from adaserve.policy.policy import Demand, RowShare
from adaserve.tree import MAX_NODES


@dataclass(frozen=True)
class Constants:
    """The numbers that a search finds per model and machine: the paper's for its own policy, and what its baselines have of them.

    `adaserve tune` searches on the real engine, benchmarks/simulated_constants.py on simulated machines.

    verify_rows: B1, rows of a verification pass; also the budget B.
    draft_rows: B2, rows of a draft pass.
    depth_offset, width_offset: c1 and c2.
    depth_min, depth_max, width_max: D_min, D_max and W_max.
    per_request: n_max of the SLO phase.
    prompt_rows: most prompt rows a step while requests decode.
    idle_prompt_rows: most prompt rows a step while none does.
    token_budget: rows of a step of `sarathi`; None for 2 B1.
    batched_tokens: most prompt rows of a step that computes prompts alone, vLLM's max_num_batched_tokens.
    tree_depth, tree_width: of the tree that `specinfer` drafts; at first the smallest of the paper's public scripts.
    level_quantum, level_patience: iterations that `fastserve` grants in its highest level; seconds until a starved one returns.
    """

    verify_rows: int
    draft_rows: int
    depth_offset: int = 0
    width_offset: int = 0
    depth_min: int = 0
    depth_max: int = 4
    width_max: int = 3
    per_request: int = 8
    prompt_rows: int = 32
    idle_prompt_rows: int = 512
    token_budget: int | None = None
    batched_tokens: int = 2048
    tree_depth: int = 4
    tree_width: int = 3
    level_quantum: int = 8
    level_patience: float = 2.0

    def __post_init__(self) -> None:
        for name, low in (("verify_rows", 1), ("draft_rows", 0), ("depth_min", 0), ("width_max", 1), ("per_request", 0)):
            if getattr(self, name) < low:
                raise InvalidConfig(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("depth_max", "width_max", "per_request"):
            if getattr(self, name) > MAX_NODES:
                raise InvalidConfig(f"{name} must be at most {MAX_NODES}, got {getattr(self, name)}")
        if self.depth_max < self.depth_min:
            raise InvalidConfig(f"depth_max {self.depth_max} is below depth_min {self.depth_min}")
        if min(self.prompt_rows, self.idle_prompt_rows, self.batched_tokens) < 1:
            raise InvalidConfig("prompt_rows, idle_prompt_rows and batched_tokens must be at least 1, or prompts never end")
        if self.token_budget is not None and self.token_budget < 2:
            raise InvalidConfig(f"token_budget must be at least 2, got {self.token_budget}")
        depth, width = self.tree_depth, self.tree_width
        if min(depth, width) < 1 or depth * width > MAX_NODES:
            raise InvalidConfig(f"tree_depth x tree_width must be positive and at most {MAX_NODES}, got {depth} x {width}")
        if self.level_quantum < 1 or not self.level_patience > 0:
            raise InvalidConfig("level_quantum and level_patience must be positive")


@dataclass(frozen=True)
class AdaptiveScheduling:
    """Depth and width by the paper's Eq. 8 and 9, or fixed ones; prompt chunks of bounded size ride along with verification."""

    constants: Constants
    fixed_depth: int | None = None
    fixed_width: int | None = None

    @property
    def deepest(self) -> int:
        return self.constants.depth_max if self.fixed_depth is None else self.fixed_depth

    def share(self, demand: Demand) -> RowShare:
        c = self.constants
        depth, width = self.fixed_depth, self.fixed_width
        n = max(1, demand.decoding)
        if depth is None:  # Eq. 8
            depth = min(max(c.verify_rows // max(1, n + c.depth_offset) - 1, c.depth_min), c.depth_max)
        if width is None:  # Eq. 9
            width = min(max(c.draft_rows // n + c.width_offset, 1), c.width_max)
        if depth:
            width = min(width, MAX_NODES // depth)
        prompt_rows = c.prompt_rows if demand.decoding else c.idle_prompt_rows
        return RowShare(True, prompt_rows, c.verify_rows, depth, width)
