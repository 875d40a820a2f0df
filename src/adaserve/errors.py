"""What can go wrong, as a tree of exceptions.

    AdaServeError
    ├── InvalidRequest      the request asks for something malformed or impossible   (HTTP 400)
    │   └── PromptTooLong   prompt and output do not fit the context
    ├── ModelNotFound       no such model, or it lacks a file                        (start-up, HTTP 404)
    ├── InvalidModel        the model's files are broken or of an unsupported kind   (start-up)
    ├── InvalidConfig       options that contradict each other or the machine        (start-up)
    ├── InvalidTrace        a workload file cannot be read, or an entry makes no sense (start-up)
    ├── Overloaded          the queue is full; try again later                       (HTTP 429)
    └── EngineFailed        the engine process died or refused                       (HTTP 503)

Every message is one line that says what is wrong and what to do about it.
"""


class AdaServeError(Exception):
    """Base of all errors that AdaServe raises on purpose."""


class InvalidRequest(AdaServeError):
    """The request is malformed or asks for what cannot be done.

    `param` names the offending field, as OpenAI's error body does, or is None.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(InvalidRequest):
    """The prompt, or the prompt and the tokens asked for, exceed the context or the cache."""


class ModelNotFound(AdaServeError):
    """No model goes by that name here."""


class InvalidModel(AdaServeError):
    """The model's files are broken, truncated or of a kind that is not supported."""


class InvalidConfig(AdaServeError):
    """Options contradict each other or ask for more than the machine has."""


class InvalidTrace(AdaServeError):
    """A workload file cannot be read, or one of its entries makes no sense."""


class Overloaded(AdaServeError):
    """The waiting queue is full; `retry_after` says in how many seconds to try again."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineFailed(AdaServeError):
    """The engine cannot serve any more."""
