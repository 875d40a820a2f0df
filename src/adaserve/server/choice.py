"""One choice of an answer: tokens in, text out, and how it ended."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adaserve.metrics import RequestResult
from adaserve.models.tokenizer import StreamDecoder, Tokenizer
from adaserve.request import FinishReason, Request
from adaserve.server.messages import TokenNews
from adaserve.server.stops import StopFinder
from adaserve.step import TokenLogprobs


@dataclass(frozen=True)
class Piece:
    """What one batch of news adds to a choice's answer. `tokens` are the kept ones; `finish` comes with the last piece."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish: str | None


class Choice:
    """Follows one request from its first token to its end.

    Stop strings are found here, token by token, so that where an answer stops does not depend on how many tokens a step
    brought. Once one is found, surplus tokens are dropped; `stopped` tells the caller to cancel the request in the engine,
    whose last news then completes the account.
    """

    def __init__(
        self, request: Request, tokenizer: Tokenizer, include_stop: bool = False, skip_special_tokens: bool = True
    ) -> None:
        self.request = request
        self.stopped = False
        self.finish: str | None = None
        self.result: RequestResult | None = None
        self.output_tokens = 0
        self.histogram = Counter[int]()
        self.drafted = 0
        self._include_stop = include_stop
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens)
        self._stops = StopFinder(request.sampling.stop, include_stop)
        self._last_at = request.arrived

    def push(self, at: float, news: TokenNews) -> Piece:
        """Take news committed at time `at`; returns what it adds."""
        text, kept = "", 0
        if not self.stopped:
            self._last_at = at
            if news.verified:
                self.histogram[len(news.tokens) - 1] += 1
                self.drafted += news.drafted
            text, kept = self._take(news)
            self.output_tokens += kept
        if news.finish is not None:
            text += self._end(news)
        return Piece(text, news.tokens[:kept], news.logprobs[:kept], self.finish)

    def _take(self, news: TokenNews) -> tuple[str, int]:
        """Turn tokens into text; returns it and how many tokens were kept."""
        last = len(news.tokens) - 1
        silent = news.finish is FinishReason.STOP and not self._include_stop  # the last token is what it stopped at
        if not self.request.sampling.stop:
            return self._decoder.push(news.tokens[:-1] if silent else news.tokens), len(news.tokens)
        text = ""
        for position, token in enumerate(news.tokens):
            if silent and position == last:
                break
            piece = self._decoder.push((token,))
            if self.output_tokens + position < self.request.sampling.min_tokens:
                text += piece
                continue
            visible, self.stopped = self._stops.push(piece)
            text += visible
            if self.stopped:
                return text, position + 1
        return text, len(news.tokens)

    def _end(self, news: TokenNews) -> str:
        """Close the account; returns the text that was held back."""
        held = ""
        if not self.stopped:
            visible, self.stopped = self._stops.push(self._decoder.finish())
            held = visible if self.stopped else visible + self._stops.flush()
        reason = FinishReason.STOP if self.stopped else news.finish
        self.finish = "stop" if reason is None else reason.value
        self.result = news.result
        if self.stopped and news.result is not None:
            # The engine counts on to where the cancellation reached it; the answer ended earlier.
            self.result = replace(
                news.result, finish=FinishReason.STOP, output_tokens=self.output_tokens, last_token_at=self._last_at
            )
        return held


def worst(values: Sequence[float | None]) -> float | None:
    """Return the largest of the values that there are, or None."""
    known = [value for value in values if value is not None]
    return max(known) if known else None


def metrics_of(choices: Sequence[Choice]) -> dict[str, object]:
    """The `metrics` object of an answer.

    slo: how the answer fared against its targets; of several choices the worst counts. `met` is true when every target that
    was stated was met, and null when none was stated.
    speculative_decoding: names as in vLLM's per-request metrics; sums over the choices.
    """
    results = [choice.result for choice in choices if choice.result is not None]
    request = choices[0].request
    met = [result.attained for result in results]
    steps = Counter[int]()
    for choice in choices:
        steps.update(choice.histogram)
    drafted = sum(choice.drafted for choice in choices)
    accepted = sum(count * length for length, count in steps.items())
    return {
        "slo": {
            "class": request.slo_class,
            "tpot_ms": _ms(worst([result.tpot for result in results])),
            "ttft_ms": _ms(worst([result.ttft for result in results])),
            "longest_gap_ms": _ms(worst([result.longest_gap for result in results])),
            "met": None if None in met or not met else all(met),
            "targets": {"tpot_ms": _ms(request.targets.tpot), "ttft_ms": _ms(request.targets.ttft)},
        },
        "speculative_decoding": {
            "num_spec_steps": steps.total(),
            "num_draft_tokens": drafted,
            "num_accepted_draft_tokens": accepted,
            "draft_acceptance_rate": accepted / drafted if drafted else None,
            "mean_acceptance_length": 1 + accepted / steps.total() if steps else None,
            "acceptance_histogram": [steps[length] for length in range(max(steps, default=-1) + 1)],
        },
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
