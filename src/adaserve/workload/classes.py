"""Request classes and mixes of them: the demo's three, with targets as multiples of the machine's baseline latency."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adaserve.request import SLO


@dataclass(frozen=True)
class RequestClass:
    """Requests of one kind: the prompts are those of the same name in `prompts/`; other fields as in Arrival."""

    name: str
    slo: SLO | None
    max_tokens: int
    chat: bool


@dataclass(frozen=True)
class Mix:
    """Classes with their shares of all requests. Raises ValueError unless shares are positive and add up to 1."""

    shares: Mapping[RequestClass, float]

    def __post_init__(self) -> None:
        if not all(share > 0 for share in self.shares.values()) or not math.isclose(sum(self.shares.values()), 1):
            raise ValueError(f"shares must be positive and add up to 1, got {list(self.shares.values())}")


CODING = RequestClass("coding", SLO(tpot_multiple=1.2), max_tokens=96, chat=False)
"""An editor waits for the rest of a function: faster than a shared batch goes."""

CHAT = RequestClass("chat", SLO(tpot_multiple=1.8), max_tokens=96, chat=True)
"""Somebody reads along."""

SUMMARIZATION = RequestClass("summarization", SLO(tpot_multiple=5.0), max_tokens=64, chat=True)
"""Somebody comes back for it: long prompts, short answers, time to spare."""

DEMO_MIX = Mix({CODING: 0.6, CHAT: 0.2, SUMMARIZATION: 0.2})
"""The paper's proportions."""
