"""Prompts of a stated length for traces that hold lengths and no texts, made from the project's own prompts.

A part's text is a stretch of the class's prompts, one after the other, from a place that its key decides, under a heading that no
other part has: different keys never share a prefix, equal keys are equal texts. That is what the block hashes of a Mooncake trace
mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from adaserve.workload.prompts import prompts

SURPLUS = 8
"""Characters that a part's text has per token: more than any tokenizer makes of one, so that it can be cut to length."""

CHARACTERS_PER_TOKEN = {"coding": 3.4, "chat": 4.4, "summarization": 4.6}
"""What SmolLM2's tokenizer makes of these prompts on average, for estimates."""

SPREAD = 0x9E3779B97F4A7C15
"""Multiplying by it scatters neighbouring keys (the golden ratio's 64 bits)."""


@dataclass(frozen=True)
class Part:
    """A piece of a made-up prompt: the first `tokens` tokens of `text`, which only `class_name` and `key` decide."""

    class_name: str
    key: int
    tokens: int

    @property
    def text(self) -> str:
        """More text than `tokens` tokens take."""
        return _stretch(self.class_name, self.key, self.tokens * SURPLUS)


def estimate(parts: Iterable[Part]) -> str:
    """About the same prompt without a tokenizer: each part cut to so many characters as its tokens have on average."""
    return "".join(
        _stretch(part.class_name, part.key, max(1, round(part.tokens * CHARACTERS_PER_TOKEN[part.class_name]))) for part in parts
    )


def _stretch(class_name: str, key: int, length: int) -> str:
    deck = _deck(class_name)
    start = (key * SPREAD) % 2**64 % len(deck)
    text = f"[{key}] " + deck[start : start + length]
    return (text + deck * (1 + (length - len(text)) // len(deck)))[:length]


@cache
def _deck(class_name: str) -> str:
    return "\n\n".join(prompts(class_name)) + "\n\n"
