"""The door: turns a checked body into complete requests, or refuses it. Nothing behind the door validates again."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from adaserve.errors import InvalidRequest, PromptTooLong
from adaserve.models.tokenizer import Tokenizer
from adaserve.request import Request, SamplingParams
from adaserve.server.limits import CallLimits
from adaserve.server.messages import Ready
from adaserve.server.problems import Kind, Problem
from adaserve.server.schema import ChatBody, CompletionBody, GenerationBody, MessageBody, SLOBody
from adaserve.server.slo import SLOBook

DEFAULT_COMPLETION_TOKENS = 16
MAX_STOP_LENGTH = 256
MAX_IDS = 1024


@dataclass(frozen=True)
class Caller:
    """Who calls, and when: what a request takes from its connection. `arrived` is in seconds on the engine's clock."""

    id: str
    arrived: float
    headers: Mapping[str, str]
    api_key: str | None


@dataclass(frozen=True)
class Door:
    """Turns bodies into requests for one loaded model."""

    facts: Ready
    tokenizer: Tokenizer
    slos: SLOBook
    limits: CallLimits
    draw_seed: Callable[[], int]

    def chat(self, body: ChatBody, caller: Caller) -> list[Request]:
        """Make the requests of a chat completion, one a choice."""
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise InvalidRequest("give either max_tokens or max_completion_tokens, not both", "max_tokens")
        if body.top_logprobs is not None and not body.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true", "top_logprobs")
        prompt = self.conversation(body.messages)
        most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        return self._requests(body, [prompt], caller, most, None, logprobs, "messages")

    def conversation(self, messages: Sequence[MessageBody]) -> list[int]:
        """Tokenise a conversation. OpenAI's developer messages are what templates call system messages."""
        roles = {"developer": "system"}
        return self.tokenizer.chat([{"role": roles.get(item.role, item.role), "content": item.text} for item in messages])

    def completion(self, body: CompletionBody, caller: Caller) -> list[Request]:
        """Make the requests of a text completion: its prompts in order, the choices of each beside one another."""
        prompts = self._prompts(body.prompt)
        return self._requests(body, prompts, caller, body.max_tokens, DEFAULT_COMPLETION_TOKENS, body.logprobs, "prompt")

    def _prompts(self, prompt: str | list[str] | list[int] | list[list[int]]) -> list[list[int]]:
        """Tokenise what is text. A list of integers is one prompt."""
        if isinstance(prompt, str):
            return [self.tokenizer.encode(prompt)]
        if len(prompt) == 0:
            raise InvalidRequest("prompt must not be empty", "prompt")
        if isinstance(prompt[0], int):
            return [list(prompt)]
        if len(prompt) > self.limits.prompts:
            raise InvalidRequest(f"at most {self.limits.prompts} prompts a call, got {len(prompt)}", "prompt")
        return [self.tokenizer.encode(item) if isinstance(item, str) else list(item) for item in prompt]

    def _requests(
        self,
        body: GenerationBody,
        prompts: list[list[int]],
        caller: Caller,
        max_tokens: int | None,
        default_tokens: int | None,
        logprobs: int | None,
        param: str,
    ) -> list[Request]:
        slo = body.slo.model_dump(exclude_none=True) if isinstance(body.slo, SLOBody) else body.slo
        slo_class, targets = self.slos.choose(slo, caller.headers, body.service_tier)
        rooms = [self._room(prompt, max_tokens, param) for prompt in prompts]
        choices = 1 if body.n is None else body.n
        if not 1 <= choices * len(prompts) <= self.limits.sequences:
            raise InvalidRequest(
                f"n times the number of prompts must be between 1 and {self.limits.sequences}, got {choices * len(prompts)}", "n"
            )
        requests = []
        for index, (prompt, room) in enumerate(zip(prompts, rooms, strict=True)):
            most = max_tokens if max_tokens is not None else min(room, default_tokens or room)
            sampling = self._sampling(body, most, logprobs)
            seed = self.draw_seed() if sampling.seed is None else sampling.seed % 2**64
            for choice in range(choices):
                requests.append(
                    Request(
                        id=f"{caller.id}-{index}-{choice}",
                        prompt=tuple(prompt),
                        sampling=sampling,
                        targets=targets.resolve(self.facts.baseline),
                        seed=seed,
                        arrived=caller.arrived,
                        choice=choice,
                        slo_class=slo_class,
                        stop_ids=(() if sampling.ignore_eos else self.facts.eos_ids) + sampling.stop_token_ids,
                        cache_salt=salt_of(caller.api_key),
                    )
                )
        return requests

    def _room(self, prompt: Sequence[int], max_tokens: int | None, param: str) -> int:
        """Check a prompt; returns how many tokens may follow it."""
        size, context, vocabulary = len(prompt), self.facts.max_model_len, self.facts.vocab_size
        if size == 0:
            raise InvalidRequest("the prompt has no tokens", param)
        room = context - size
        if room < 1:
            raise PromptTooLong(f"the prompt has {size} tokens; this server's context holds {context}, output included", param)
        if max_tokens is not None and max_tokens > room:
            raise PromptTooLong(
                f"the prompt's {size} tokens and max_tokens {max_tokens} exceed this server's context of {context}", "max_tokens"
            )
        # min and max, because a loop over every token of a long prompt would hold the other calls up.
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise InvalidRequest(f"token ids must be between 0 and {vocabulary - 1}", param)
        return room

    def _sampling(self, body: GenerationBody, max_tokens: int, logprobs: int | None) -> SamplingParams:
        given: dict[str, object] = {"max_tokens": max_tokens, "logprobs": logprobs}
        for name in (
            "temperature", "top_p", "top_k", "min_p", "n", "seed", "min_tokens", "ignore_eos",
            "presence_penalty", "frequency_penalty", "repetition_penalty",
        ):  # fmt: skip
            value = getattr(body, name)
            if value is not None:
                given[name] = value
        if body.top_k == -1:
            given["top_k"] = 0
        if body.stop is not None:
            given["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
            if any(len(stop) > MAX_STOP_LENGTH for stop in given["stop"]):  # type: ignore[attr-defined]
                raise InvalidRequest(f"a stop string has at most {MAX_STOP_LENGTH} characters", "stop")
        if body.stop_token_ids is not None:
            given["stop_token_ids"] = self._known_ids(body.stop_token_ids, "stop_token_ids")
        if body.logit_bias is not None:
            given["logit_bias"] = self._bias(body.logit_bias)
        return SamplingParams(**given)  # type: ignore[arg-type]

    def _bias(self, bias: Mapping[str, float]) -> dict[int, float]:
        if not all(key.isascii() and key.isdecimal() and len(key) < 12 for key in bias):
            raise InvalidRequest("logit_bias must map token ids, written as strings, to numbers", "logit_bias")
        self._known_ids([int(key) for key in bias], "logit_bias")
        return {int(key): value for key, value in bias.items()}

    def _known_ids(self, ids: Sequence[int], param: str) -> tuple[int, ...]:
        if len(ids) > MAX_IDS:
            raise InvalidRequest(f"at most {MAX_IDS} entries in {param}", param)
        if any(not 0 <= token < self.facts.vocab_size for token in ids):
            raise InvalidRequest(f"token ids in {param} must be between 0 and {self.facts.vocab_size - 1}", param)
        return tuple(ids)


def salt_of(api_key: str | None) -> str:
    """Return what keeps callers with different keys from sharing prefixes: how fast a prompt runs tells whether it was seen."""
    return "" if api_key is None else hashlib.sha256(b"prefix:" + api_key.encode()).hexdigest()[:32]


def check_model(asked: str | None, served: Sequence[str]) -> str:
    """Return the name to answer under; raises Problem for a model that is not served here."""
    if asked is None:
        return served[0]
    if asked not in served:
        raise Problem(Kind.NO_MODEL, f"the model {asked[:100]!r} does not exist; this server has {', '.join(served)}", "model")
    return asked
