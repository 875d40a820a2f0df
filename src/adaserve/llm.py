"""Offline inference: `LLM` generates for a list of prompts, each at its own speed, in this process."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from adaserve.build import BuiltEngine, build_engine
from adaserve.config import EngineConfig
from adaserve.errors import InvalidRequest, PromptTooLong
from adaserve.metrics import RequestResult
from adaserve.models.tokenizer import StreamDecoder
from adaserve.request import SLO, FinishReason, Request, SamplingParams
from adaserve.server.stops import StopFinder
from adaserve.step import TokenLogprobs

__all__ = ["LLM", "BuiltEngine", "Completion", "Generation", "build_engine"]

Prompt = str | Sequence[int]
T = TypeVar("T")


@dataclass(frozen=True)
class Completion:
    """One choice: its text and tokens, why it ended ("stop", "length", or "error" when logits were not finite), how it fared."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: str
    result: RequestResult


@dataclass(frozen=True)
class Generation:
    """What one prompt led to: `outputs` holds SamplingParams.n choices. `text` is the first one's."""

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[Completion, ...]

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.outputs[0].text


class LLM:
    """A model ready to generate.

    model: see EngineConfig.model; further options are EngineConfig's fields, e.g. LLM("demo", policy="continuous").
    progress: hears a line per stage of loading. Raises ModelNotFound, InvalidModel or InvalidConfig.
    """

    def __init__(self, model: str = "demo", *, progress: Callable[[str], None] = lambda line: None, **options: object) -> None:
        config = EngineConfig(model=model, **options)  # type: ignore[arg-type]
        self.built = build_engine(config, progress)
        self._ids = itertools.count()
        self._seeds = random.Random(config.seed)

    def close(self) -> None:
        """Keep what the policy learned, for the next start, and end the processes that share the model, if there are any.

        Those end with this process too; what was learned is lost without this.
        """
        self.built.close()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        slo: SLO | Sequence[SLO | None] | None = None,
        on_tokens: Callable[[int, int], None] = lambda prompt, tokens: None,
    ) -> list[Generation]:
        """Generate for every prompt, all in one batch; outputs come in the prompts' order.

        prompts: texts or token ids, one or several. sampling, slo: one for all, or one a prompt.
        on_tokens(prompt index, tokens gained) is called as tokens come. Raises InvalidRequest before anything runs.
        """
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        batch: list[Prompt] = [prompts] if single else list(prompts)  # type: ignore[list-item, arg-type]
        params = _one_each(sampling or SamplingParams(), len(batch), "sampling")
        slos = _one_each(slo, len(batch), "slo")
        groups = [self._requests(*item) for item in zip(batch, params, slos, strict=True)]
        results = self._run([request for group in groups for request in group], groups, on_tokens)
        return [
            Generation(
                prompt if isinstance(prompt, str) else None, group[0].prompt, tuple(results[request.id] for request in group)
            )
            for prompt, group in zip(batch, groups, strict=True)
        ]

    def chat(
        self,
        conversations: Sequence[dict[str, str]] | Sequence[Sequence[dict[str, str]]],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        slo: SLO | Sequence[SLO | None] | None = None,
    ) -> list[Generation]:
        """Generate the next turn of one or several conversations, through the model's chat template."""
        many = [conversations] if conversations and isinstance(conversations[0], dict) else conversations
        return self.generate([self.built.tokenizer.chat(list(c)) for c in many], sampling, slo)  # type: ignore[arg-type]

    def _requests(self, prompt: Prompt, params: SamplingParams, slo: SLO | None) -> list[Request]:
        """The requests of one prompt, one a choice."""
        if not isinstance(prompt, str) and not (isinstance(prompt, Sequence) and all(isinstance(one, int) for one in prompt)):
            raise InvalidRequest("a prompt is a text or a list of token ids", "prompt")
        ids = tuple(self.built.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
        if not ids:
            raise InvalidRequest("the prompt has no tokens", "prompt")
        if min(ids) < 0 or max(ids) >= self.built.vocab_size:
            raise InvalidRequest(f"token ids must be between 0 and {self.built.vocab_size - 1}", "prompt")
        context = self.built.max_model_len
        if len(ids) + params.max_tokens > context:
            raise PromptTooLong(
                f"the prompt's {len(ids)} tokens and max_tokens {params.max_tokens} exceed the context of {context}", "prompt"
            )
        seed = self._seeds.getrandbits(63) if params.seed is None else params.seed % 2**64
        number = next(self._ids)
        return [
            Request(
                id=f"{number}-{choice}",
                prompt=ids,
                sampling=params,
                targets=(slo or SLO()).resolve(self.built.baseline),
                seed=seed,
                arrived=self.built.engine.clock.now(),
                choice=choice,
                stop_ids=(() if params.ignore_eos else self.built.eos_ids) + params.stop_token_ids,
            )
            for choice in range(params.n)
        ]

    def _run(
        self, requests: list[Request], groups: list[list[Request]], on_tokens: Callable[[int, int], None]
    ) -> dict[str, Completion]:
        """Step the engine until all requests have ended; an interruption cancels what is left."""
        engine = self.built.engine
        index = {request.id: number for number, group in enumerate(groups) for request in group}
        writers = {request.id: _Writer(request, self.built) for request in requests}
        done: dict[str, Completion] = {}
        for request in requests:
            engine.add(request)
        try:
            while len(done) < len(requests):
                report = engine.step()
                for update in report.updates if report else ():
                    writer = writers[update.id]
                    if update.tokens:
                        writer.push(update.tokens, update.logprobs)
                        on_tokens(index[update.id], len(update.tokens))
                    if writer.stopped and update.finish is None:
                        engine.cancel(update.id)
                    if update.finish is not None and update.result is not None:
                        done[update.id] = writer.finish(update.finish.value, update.result)
        except BaseException:
            for request_id in writers.keys() - done.keys():
                engine.cancel(request_id)
            while engine.step() is not None:  # a step may be under way
                pass
            raise
        return done


class _Writer:
    """Turns one request's tokens into its completion."""

    def __init__(self, request: Request, built: BuiltEngine) -> None:
        self.stopped = False
        self._silent = set(request.stop_ids)
        self._decoder = StreamDecoder(built.tokenizer)
        self._finder = StopFinder(request.sampling.stop)
        self._floor = request.sampling.min_tokens
        self._text = ""
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprobs] = []

    def push(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> None:
        """Take tokens in; those behind a stop string are dropped."""
        for position, token in enumerate(tokens):
            if self.stopped:
                return
            self._tokens.append(token)
            self._logprobs.extend(logprobs[position : position + 1])
            if token in self._silent and len(self._tokens) > self._floor:
                return
            self._take(self._decoder.push((token,)))

    def finish(self, reason: str, result: RequestResult) -> Completion:
        """Close the text."""
        if not self.stopped:
            self._take(self._decoder.finish())
        if not self.stopped:
            self._text += self._finder.flush()
        if self.stopped:
            # The engine saw a cancellation, and counts on to where it came; the text ended earlier.
            reason = "stop"
            result = replace(result, finish=FinishReason.STOP, output_tokens=len(self._tokens))
        return Completion(self._text, tuple(self._tokens), tuple(self._logprobs), reason, result)

    def _take(self, piece: str) -> None:
        if len(self._tokens) <= self._floor and self._floor:
            self._text += piece
            return
        visible, self.stopped = self._finder.push(piece)
        self._text += visible


def _one_each(value: T | Sequence[T], count: int, name: str) -> list[T]:
    """Give everybody the same, or each its own."""
    if isinstance(value, list | tuple):
        if len(value) != count:
            raise InvalidRequest(f"{name}: {len(value)} given for {count} prompts; give one, or one a prompt", name)
        return list(value)
    return [value] * count  # type: ignore[list-item]
