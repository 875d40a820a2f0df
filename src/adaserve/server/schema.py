"""What calls may say, as strict types: unknown fields, wrong types and numbers that are not finite are refused by name."""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adaserve.server.problems import Kind, Problem


class Strict(BaseModel):
    """Base of all bodies: no coercion, no unknown fields, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class SLOBody(Strict):
    """Targets of one request: milliseconds, or TPOT as a multiple of the machine's baseline latency."""

    tpot_ms: float | None = None
    ttft_ms: float | None = None
    tpot_multiple: float | None = None


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class GenerationBody(Strict):
    """What text and chat completions have in common. A field that is null has its default."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, description="0 or -1 keeps the whole vocabulary")
    min_p: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    slo: str | SLOBody | None = Field(None, description="targets in milliseconds, or the name of an SLO class")
    service_tier: str | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None


class TextPart(Strict):
    """A piece of a message. Text is the only type."""

    type: Literal["text"]
    text: str


class MessageBody(Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: list[MessageBody] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class TokenizeBody(Strict):
    """POST /tokenize: a prompt, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[MessageBody] | None = None
    add_special_tokens: bool | None = None


class DetokenizeBody(Strict):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "store": (None, False),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "prompt_logprobs": (None, 0),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1, 1.0),
    "early_stopping": (None, False),
    "bad_words": (None, []),
    "allowed_token_ids": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "structured_outputs": (None,),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "documents": (None, []),
    "truncate_prompt_tokens": (None,),
    "priority": (None, 0),
    "prompt_cache_key": (None,),
    "safety_identifier": (None,),
}
"""Fields that other servers know and this one does not act on, with the values that ask for nothing."""

IGNORED = ("prompt_cache_key", "safety_identifier")
"""Fields about the caller, not about the answer: read and dropped."""

EXPECTED_LINES: Mapping[str, str] = {
    "prompt": "must be a string, a list of strings, a list of token ids, or a list of lists of token ids",
    "stop": "must be a string or a list of strings",
    "slo": 'must be an object such as {"tpot_ms": 50, "ttft_ms": 500} with finite numbers, or the name of an SLO class',
    "logit_bias": "must map token ids, written as strings, to numbers",
}
"""What fields of several types must be; pydantic would list every alternative."""

Body = TypeVar("Body", bound=BaseModel)


def read_body(kind: type[Body], data: object) -> Body:
    """Check a decoded JSON body; raises Problem with one line that names the field."""
    if not isinstance(data, dict):
        raise Problem(Kind.INVALID, "the body must be a JSON object")
    fields: dict[str, Any] = dict(data)
    for name, harmless in UNSUPPORTED.items():
        if name in fields and name not in kind.model_fields:
            value = fields.pop(name)
            if name not in IGNORED and not any(value == item and type(value) is type(item) for item in harmless):
                raise Problem(Kind.UNSUPPORTED, f"{name} is not supported by this server", name)
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _problem(error) from None


def _problem(error: ValidationError) -> Problem:
    """Turn pydantic's list into one line about its first entry."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = [str(part) for part in first["loc"]]
    name = path[0] if path else ""
    if first["type"] == "extra_forbidden":
        dotted = ".".join(part for part in path if part != "SLOBody")[:100]
        return Problem(Kind.INVALID, f"unknown field {dotted!r}", dotted)
    if first["type"] == "missing" and len(path) == 1:
        return Problem(Kind.INVALID, f"the field {name!r} is required", name)
    if name in EXPECTED_LINES:
        return Problem(Kind.INVALID, f"{name} {EXPECTED_LINES[name]}", name)
    dotted = ".".join(path)[:100]
    return Problem(Kind.INVALID, f"{dotted}: {first['msg'][:200]}", dotted)
