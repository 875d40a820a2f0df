"""Everything that can be wrong with a call, as OpenAI's error bodies, from one fixed table. No 5xx but 503."""

import math
from dataclasses import dataclass
from enum import Enum

from adaserve.errors import AdaServeError, EngineFailed, InvalidRequest, ModelNotFound, Overloaded, PromptTooLong
from adaserve.request import Targets

RETRY_REFUSED = 1.0
"""Seconds after which who was refused for its targets may ask again: what runs now may have ended."""


class Kind(Enum):
    """Status, OpenAI's `type` and OpenAI's `code` of each kind of problem."""

    INVALID = (400, "invalid_request_error", None)
    UNSUPPORTED = (400, "invalid_request_error", "unsupported")
    TOO_LONG = (400, "invalid_request_error", "context_length_exceeded")
    NO_KEY = (401, "invalid_request_error", "invalid_api_key")
    NO_MODEL = (404, "invalid_request_error", "model_not_found")
    NO_ROUTE = (404, "invalid_request_error", "unknown_url")
    NO_METHOD = (405, "invalid_request_error", "method_not_allowed")
    TIMEOUT = (408, "invalid_request_error", "request_timeout")
    TOO_LARGE = (413, "invalid_request_error", "body_too_large")
    NOT_JSON = (415, "invalid_request_error", "unsupported_media_type")
    HEAD_TOO_LARGE = (431, "invalid_request_error", "headers_too_large")
    OVERLOADED = (429, "rate_limit_error", "queue_full")
    OUT_OF_REACH = (429, "rate_limit_error", "slo_out_of_reach")
    LOADING = (503, "service_unavailable", "loading")
    STOPPING = (503, "service_unavailable", "shutting_down")
    FAILED = (503, "service_unavailable", "engine_failed")
    ABANDONED = (503, "service_unavailable", "request_failed")
    INTERNAL = (503, "service_unavailable", "internal_error")


@dataclass
class Problem(Exception):
    """A call that ends in an error. `message` is one line; `param` names the field; `retry_after` is in seconds."""

    kind: Kind
    message: str
    param: str | None = None
    retry_after: float | None = None

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.kind.value[0])

    @property
    def body(self) -> dict[str, object]:
        """OpenAI's error body."""
        _, type_, code = self.kind.value
        return {"error": {"message": self.message, "type": type_, "param": self.param, "code": code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the error."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.kind is Kind.NO_KEY:
            headers["www-authenticate"] = "Bearer"
        if self.kind in (Kind.TOO_LARGE, Kind.TIMEOUT, Kind.HEAD_TOO_LARGE):
            headers["connection"] = "close"
        return headers


class RequestFailed(EngineFailed):
    """The engine gave up on one request; the others live on."""


class OutOfReach(AdaServeError):
    """A request was refused on arrival: beside those that run and wait, its targets cannot be met."""

    def __init__(self, targets: Targets) -> None:
        stated = (("TPOT", targets.tpot), ("TTFT", targets.ttft))
        asked = " and ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in stated if seconds is not None)
        super().__init__(f"at this load the target cannot be met ({asked}): state a more relaxed one, or try again later")


class Stopping(EngineFailed):
    """The server is shutting down, and its grace time has run out."""


def problem_of(error: AdaServeError) -> Problem:
    """Translate one of our exceptions; what is none of the caller's business becomes 503."""
    if isinstance(error, PromptTooLong):
        return Problem(Kind.TOO_LONG, str(error), error.param)
    if isinstance(error, InvalidRequest):
        return Problem(Kind.INVALID, str(error), error.param)
    if isinstance(error, Overloaded):
        return Problem(Kind.OVERLOADED, str(error), retry_after=error.retry_after)
    if isinstance(error, OutOfReach):
        return Problem(Kind.OUT_OF_REACH, str(error), "slo", retry_after=RETRY_REFUSED)
    if isinstance(error, ModelNotFound):
        return Problem(Kind.NO_MODEL, str(error), "model")
    if isinstance(error, RequestFailed):
        return Problem(Kind.ABANDONED, str(error))
    if isinstance(error, Stopping):
        return Problem(Kind.STOPPING, str(error), retry_after=5)
    return Problem(Kind.FAILED, "the engine failed; this server is going to restart", retry_after=5)
