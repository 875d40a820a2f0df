"""Answers in OpenAI's shapes: whole objects and streamed chunks, for chat and for text completions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from adaserve.models.tokenizer import Tokenizer
from adaserve.server.choice import Choice, Piece, metrics_of
from adaserve.step import TokenLogprobs

LOWEST_LOGPROB = -9999.0
"""What stands for a probability of zero: JSON has no infinity."""

Json = dict[str, object]


class Form(Protocol):
    """How one endpoint words its answers."""

    whole: str
    chunk: str

    def choice(self, index: int, text: str, logprobs: Json | None, finish: str | None) -> Json:
        """Word one choice of a whole answer."""
        ...

    def delta(self, index: int, text: str, logprobs: Json | None, finish: str | None, first: bool) -> Json:
        """Word what a chunk adds to one choice; `first`: it is the choice's first chunk."""
        ...

    def logprobs(self, items: Sequence[TokenLogprobs], top: int, tokenizer: Tokenizer, offset: int) -> Json:
        """Word log-probabilities; `offset` is where in the choice's text the first of the tokens begins."""
        ...


class ChatForm:
    """POST /v1/chat/completions."""

    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def choice(self, index: int, text: str, logprobs: Json | None, finish: str | None) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def delta(self, index: int, text: str, logprobs: Json | None, finish: str | None, first: bool) -> Json:
        delta: Json = {"role": "assistant"} if first else {}
        if text or first:
            delta["content"] = text
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def logprobs(self, items: Sequence[TokenLogprobs], top: int, tokenizer: Tokenizer, offset: int) -> Json:
        content = [
            _chat_logprob(item.token, item.logprob, tokenizer)
            | {"top_logprobs": [_chat_logprob(token, value, tokenizer) for token, value in item.top[:top]]}
            for item in items
        ]
        return {"content": content, "refusal": None}


class TextForm:
    """POST /v1/completions."""

    whole = "text_completion"
    chunk = "text_completion"

    def choice(self, index: int, text: str, logprobs: Json | None, finish: str | None) -> Json:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def delta(self, index: int, text: str, logprobs: Json | None, finish: str | None, first: bool) -> Json:
        return self.choice(index, text, logprobs, finish)

    def logprobs(self, items: Sequence[TokenLogprobs], top: int, tokenizer: Tokenizer, offset: int) -> Json:
        offsets, tokens = [], []
        for item in items:
            tokens.append(token_text(item.token, tokenizer))
            offsets.append(offset)
            offset += len(tokenizer.decode([item.token]))  # special tokens are no part of the text
        tops = [
            {token_text(token, tokenizer): finite(value) for token, value in [*item.top[:top], (item.token, item.logprob)]}
            for item in items
        ]
        return {
            "tokens": tokens,
            "token_logprobs": [finite(item.logprob) for item in items],
            "top_logprobs": tops,
            "text_offset": offsets,
        }


def finite(value: float) -> float:
    """Return a log-probability that JSON can carry."""
    return max(value, LOWEST_LOGPROB)


def token_text(token: int, tokenizer: Tokenizer) -> str:
    """Return a token's own text, special tokens included."""
    return tokenizer.decode([token], skip_special_tokens=False)


def _chat_logprob(token: int, logprob: float, tokenizer: Tokenizer) -> Json:
    data = list(tokenizer.token_bytes(token))
    return {"token": token_text(token, tokenizer), "logprob": finite(logprob), "bytes": data}


@dataclass
class GrowingAnswer:
    """One call's answer as it grows: its choices, in order, and how its endpoint words them."""

    id: str
    created: int
    model: str
    form: Form
    choices: Sequence[Choice]
    tokenizer: Tokenizer
    prompts: int
    service_tier: str | None = None
    _offsets: dict[int, int] = field(default_factory=dict)
    _begun: set[int] = field(default_factory=set)

    @property
    def finished(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.finish is not None for choice in self.choices)

    def whole(self, pieces: Sequence[Sequence[Piece]]) -> Json:
        """The answer as one object; `pieces` of each choice, in order."""
        choices = []
        for index, parts in enumerate(pieces):
            items = [item for part in parts for item in part.logprobs]
            text = "".join(part.text for part in parts)
            choices.append(self.form.choice(index, text, self._logprobs(index, items), self.choices[index].finish))
        head = self._head(self.form.whole)
        return head | {"choices": choices, "usage": self.usage(), "metrics": metrics_of(self.choices)}

    def chunk(self, index: int, piece: Piece, last: bool, with_usage: bool) -> Json | None:
        """The chunk that carries a piece, or None when it has nothing to say; `last`: it ends the answer."""
        if not (piece.text or piece.logprobs or piece.finish):
            return None
        first = index not in self._begun
        self._begun.add(index)
        logprobs = self._logprobs(index, piece.logprobs)
        self._offsets[index] = self._offsets.get(index, 0) + len(piece.text)
        chunk = self._head(self.form.chunk) | {"choices": [self.form.delta(index, piece.text, logprobs, piece.finish, first)]}
        if with_usage:
            chunk["usage"] = None
        elif last:
            chunk["metrics"] = metrics_of(self.choices)
        return chunk

    def usage_chunk(self) -> Json:
        """The chunk that `stream_options.include_usage` asks for, the last of its stream."""
        return self._head(self.form.chunk) | {"choices": [], "usage": self.usage(), "metrics": metrics_of(self.choices)}

    def usage(self) -> Json:
        """Tokens read and produced. A prompt counts once, however many choices it has."""
        each = len(self.choices) // self.prompts
        prompt = sum(len(choice.request.prompt) for choice in self.choices[::each])
        output = sum(choice.output_tokens for choice in self.choices)
        cached = sum(choice.result.cached_tokens for choice in self.choices[::each] if choice.result is not None)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _head(self, kind: str) -> Json:
        head: Json = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return head if self.service_tier is None else head | {"service_tier": self.service_tier}

    def _logprobs(self, index: int, items: Sequence[TokenLogprobs]) -> Json | None:
        top = self.choices[index].request.sampling.logprobs
        return None if top is None else self.form.logprobs(items, top, self.tokenizer, self._offsets.get(index, 0))
