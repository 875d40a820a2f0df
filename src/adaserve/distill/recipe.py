"""Recipe: everything that decides how a draft turns out, but for the target and the texts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from adaserve.errors import InvalidConfig


@dataclass(frozen=True)
class Recipe:
    """How a draft is trained. Raises InvalidConfig for numbers that make no sense.

    steps, minutes   training ends after so many optimizer steps or minutes, whichever comes first; None: no such end
    batch_tokens     tokens of an optimizer step, over all devices
    micro_tokens     tokens that one device takes at once
    rate             peak learning rate; it rises over the first 2% of the way and falls to zero as a half cosine
    optimizer        adamw, or muon for the matrices with adamw for the norms
    greedy           share of cross-entropy to the target's likeliest token (gradient.py)
    given            weight of a given token; answers weigh 1
    vocabulary       train on the first so many tokens of the vocabulary alone, for engines that propose no others; None: all
    remember_bytes   memory for the target's states, so that later epochs need no target pass
    shares           of the tokens that the built-in mix makes the target write, by kind
    """

    steps: int | None = None
    minutes: float | None = None
    batch_tokens: int = 65536
    micro_tokens: int = 32768
    rate: float = 1e-3
    optimizer: str = "muon"
    greedy: float = 0.3
    given: float = 0.3
    vocabulary: int | None = None
    remember_bytes: int = 0
    seed: int = 0
    shares: Mapping[str, float] = field(default_factory=lambda: {"code": 0.3, "chat": 0.4, "summary": 0.3})

    def __post_init__(self) -> None:
        def require(condition: bool, message: str) -> None:
            if not condition:
                raise InvalidConfig(message)

        require(self.steps is not None or self.minutes is not None, "say when training ends: --steps or --minutes")
        require(self.steps is None or self.steps >= 1, f"--steps must be at least 1, got {self.steps}")
        require(self.minutes is None or self.minutes > 0, f"--minutes must be positive, got {self.minutes}")
        require(self.batch_tokens >= 1 and self.micro_tokens >= 1, "--batch-tokens and --micro-tokens must be at least 1")
        require(self.vocabulary is None or self.vocabulary >= 2, f"--vocabulary must be at least 2, got {self.vocabulary}")
        require(self.remember_bytes >= 0, f"--remember-gb must not be negative, got {self.remember_bytes / 1e9}")
        require(self.rate > 0, f"--rate must be positive, got {self.rate}")
        require(self.optimizer in OPTIMIZERS, f"--optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        require(0 <= self.greedy <= 1, f"--greedy must be between 0 and 1, got {self.greedy}")
        require(0 <= self.given <= 1, f"--given must be between 0 and 1, got {self.given}")


OPTIMIZERS = ("adamw", "muon")
