"""The paper's scheduling: depth and width follow the number of requests (Eq. 8 and 9); prompt chunks ride along."""

from dataclasses import dataclass

from adaserve.errors import InvalidConfig
from adaserve.policy.policy import Demand, Share
from adaserve.tree import MAX_NODES


@dataclass(frozen=True)
class Constants:
    """The numbers that the paper finds by a grid search per model and machine; `adaserve tune` does that search.

    verify_rows: B1, rows of a verification pass; also the budget B.
    draft_rows: B2, rows of a draft pass.
    depth_offset, width_offset: c1 and c2.
    depth_min, depth_max, width_max: D_min, D_max and W_max.
    per_request: n_max of the SLO phase.
    prompt_rows: most prompt rows a step while requests decode.
    idle_prompt_rows: most prompt rows a step while none does.
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

    def __post_init__(self) -> None:
        for name, low in (("verify_rows", 1), ("draft_rows", 0), ("depth_min", 0), ("width_max", 1), ("per_request", 0)):
            if getattr(self, name) < low:
                raise InvalidConfig(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("depth_max", "width_max", "per_request"):
            if getattr(self, name) > MAX_NODES:
                raise InvalidConfig(f"{name} must be at most {MAX_NODES}, got {getattr(self, name)}")
        if self.depth_max < self.depth_min:
            raise InvalidConfig(f"depth_max {self.depth_max} is below depth_min {self.depth_min}")
        if self.prompt_rows < 1 or self.idle_prompt_rows < 1:
            raise InvalidConfig("prompt_rows and idle_prompt_rows must be at least 1, or prompts never end")


@dataclass(frozen=True)
class AdaptiveScheduling:
    """Depth and width by the paper's Eq. 8 and 9, or fixed ones; prompt chunks of bounded size ride along with verification."""

    constants: Constants
    fixed_depth: int | None = None
    fixed_width: int | None = None

    @property
    def deepest(self) -> int:
        return self.constants.depth_max if self.fixed_depth is None else self.fixed_depth

    def share(self, demand: Demand) -> Share:
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
        return Share(True, prompt_rows, c.verify_rows, depth, width)
