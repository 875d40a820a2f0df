"""What is asked, and how far it got: SLO, SamplingParams, Request, RequestState."""

import math
from dataclasses import dataclass, field, fields
from enum import Enum

from adaserve.errors import InvalidRequest

MAX_STOP_STRINGS = 16
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20
MAX_CHOICES = 128
LEAST_TARGET, MOST_TARGET = 1e-3, 1e9
"""Bounds of SLO numbers: a target so small that its seconds round to zero must not reach a division."""


def _require(condition: bool, message: str, param: str) -> None:
    if not condition:
        raise InvalidRequest(message, param)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Targets:
    """Latency targets in seconds, None where there is none: an SLO once the baseline is known."""

    tpot: float | None = None
    ttft: float | None = None


@dataclass(frozen=True)
class SLO:
    """How fast a request needs its tokens.

    tpot_ms: milliseconds per output token after the first.
    tpot_multiple: the same as a multiple of the baseline latency (TPOT of one request alone, without speculation).
    ttft_ms: milliseconds from arrival to the first token.
    Raises InvalidRequest for numbers outside [LEAST_TARGET, MOST_TARGET], and for both kinds of TPOT at once.
    """

    tpot_ms: float | None = None
    ttft_ms: float | None = None
    tpot_multiple: float | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None:
                wanted = f"a finite positive number, at least {LEAST_TARGET:g} and at most {MOST_TARGET:g}"
                _require(
                    _is_number(value) and LEAST_TARGET <= value <= MOST_TARGET,
                    f"slo.{item.name} must be {wanted}, got {value!r}",
                    f"slo.{item.name}",
                )
        _require(
            self.tpot_ms is None or self.tpot_multiple is None,
            "give either slo.tpot_ms or slo.tpot_multiple, not both",
            "slo",
        )

    def resolve(self, baseline: float) -> Targets:
        """Turn the SLO into seconds; `baseline` is the machine's baseline latency in s/token."""
        tpot = None
        if self.tpot_ms is not None:
            tpot = self.tpot_ms / 1e3
        elif self.tpot_multiple is not None:
            tpot = self.tpot_multiple * baseline
        return Targets(tpot, None if self.ttft_ms is None else self.ttft_ms / 1e3)


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn, and when to stop. Names and defaults follow OpenAI and vLLM.

    temperature 0 is greedy. top_k 0 keeps the whole vocabulary. seed None draws a fresh seed at admission.
    logit_bias maps token ids to numbers added to the logits. stop holds strings, found by the face that detokenises.
    logprobs asks for that many alternatives per token beside the drawn one's own (0: only its own; None: none at all).
    Raises InvalidRequest with the field's name for values out of range.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        def number(name: str, low: float, high: float, low_open: bool = False) -> None:
            value = getattr(self, name)
            inside = _is_number(value) and low <= value <= high and not (low_open and value == low)
            span = f"{'(' if low_open else '['}{low:g}, {high:g}]"
            _require(inside, f"{name} must be a number in {span}, got {value!r}", name)

        def integer(name: str, low: int, high: int) -> None:
            value = getattr(self, name)
            inside = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
            _require(inside, f"{name} must be an integer in [{low}, {high}], got {value!r}", name)

        integer("max_tokens", 1, 2**31 - 1)
        number("temperature", 0, 100)
        number("top_p", 0, 1, low_open=True)
        integer("top_k", 0, 2**31 - 1)
        number("min_p", 0, 1)
        integer("n", 1, MAX_CHOICES)
        number("presence_penalty", -2, 2)
        number("frequency_penalty", -2, 2)
        number("repetition_penalty", 0, 100, low_open=True)
        integer("min_tokens", 0, self.max_tokens)
        if self.seed is not None:
            integer("seed", -(2**63), 2**64 - 1)
        if self.logprobs is not None:
            integer("logprobs", 0, MAX_LOGPROBS)
        _require(len(self.stop) <= MAX_STOP_STRINGS, f"at most {MAX_STOP_STRINGS} stop strings", "stop")
        _require(all(isinstance(s, str) and s for s in self.stop), "stop strings must be non-empty strings", "stop")
        _require(
            all(isinstance(t, int) and t >= 0 for t in self.stop_token_ids),
            "stop_token_ids must be non-negative integers",
            "stop_token_ids",
        )
        _require(len(self.logit_bias) <= MAX_LOGIT_BIAS, f"at most {MAX_LOGIT_BIAS} entries in logit_bias", "logit_bias")
        for token, bias in self.logit_bias.items():
            _require(
                isinstance(token, int) and token >= 0 and _is_number(bias) and abs(bias) <= 100,
                f"logit_bias maps token ids to numbers in [-100, 100], got {token!r}: {bias!r}",
                "logit_bias",
            )

    @property
    def uses_history(self) -> bool:
        """Whether the distribution depends on earlier tokens beyond the model's own view of them (penalties)."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1


class FinishReason(Enum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"
    REFUSED = "refused"


@dataclass(frozen=True)
class Request:
    """One sequence to generate, complete at the door: ids checked, seed drawn, targets in seconds.

    A call with n > 1 becomes n requests that differ in `choice`. `stop_ids` are the token ids that end it (the model's own
    end-of-text ids unless ignore_eos, and the caller's). `arrived` is in seconds on the engine's clock.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    targets: Targets
    seed: int
    arrived: float
    choice: int = 0
    slo_class: str | None = None
    stop_ids: tuple[int, ...] = ()
    cache_salt: str = ""


@dataclass
class RequestState:
    """How far a request got. Owned and changed by the scheduler alone.

    `tokens` are the known tokens: prompt, then output. `computed` and `draft_computed` say for how many of them the target's
    and the draft's keys and values stand in the cache; both catch up with `len(tokens)` (house rule 2).
    """

    request: Request
    tokens: list[int]
    slot: int | None = None
    computed: int = 0
    draft_computed: int = 0
    pages: list[int] = field(default_factory=list)
    decoding_since: float | None = None
    last_token_at: float | None = None
    longest_gap: float = 0.0
    preemptions: int = 0
    cached_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    steps: int = 0
    finish: FinishReason | None = None
    longest: int = field(init=False)  # known tokens at which it ends at the latest

    def __post_init__(self) -> None:
        self.longest = len(self.request.prompt) + self.request.sampling.max_tokens

    @property
    def output(self) -> list[int]:
        """The tokens produced so far, the first one included."""
        return self.tokens[len(self.request.prompt) :]

    @property
    def produced(self) -> int:
        """How many tokens have been produced, the first one included."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def remaining(self) -> int:
        """How many tokens may still be produced."""
        return self.longest - len(self.tokens)

    @property
    def is_decoding(self) -> bool:
        """Whether only the last known token waits for the target: the root of the next tree."""
        known = len(self.tokens)
        return self.computed == known - 1 and self.slot is not None and known > len(self.request.prompt)
