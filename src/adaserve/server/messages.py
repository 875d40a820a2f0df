"""What the HTTP process and the engine process say to each other: typed, length-prefixed MessagePack frames.

Frames are decoded against the types below and nothing else: no code, no pickles, no open-ended objects travel.
This module stays free of torch, so that the HTTP process starts in an instant.

    HTTP process  --Configure, Submit, Cancel-->  engine process
              <--LoadingNews, Ready, StepNews, Fatal--
"""

import struct
from typing import ClassVar

import msgspec

from adaserve.config import EngineConfig
from adaserve.errors import AdaServeError, EngineFailed
from adaserve.metrics import RequestResult
from adaserve.request import FinishReason, Request
from adaserve.step import TokenLogprobs

HEADER = struct.Struct("<I")
MAX_FRAME = 256 * 1024 * 1024


class Message(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Base of all messages; subclasses are told apart by a tag."""


class Configure(Message, frozen=True):
    """The first frame: what engine to build."""

    config: EngineConfig


class Submit(Message, frozen=True):
    """A request, complete and checked."""

    request: Request


class Cancel(Message, frozen=True):
    """Nobody waits for this request any more."""

    id: str


class LoadingNews(Message, frozen=True):
    """A line for the person who waits for the engine to load."""

    text: str


class Ready(Message, frozen=True):
    """The engine is up; what the door must know about it. `description` is for people.

    baseline: s/token of one request alone. shared: of each of 1, 2, ... requests at once, without speculation.
    """

    model_name: str
    max_model_len: int
    vocab_size: int
    baseline: float
    eos_ids: tuple[int, ...]
    description: str
    shared: tuple[float, ...] = ()


class TokenNews(msgspec.Struct, array_like=True, frozen=True):
    """Tokens that a step brought one request; `finish` and `result` come with the last of them.

    verified: the tokens come from verifying a tree (else they are a prompt's first token, or none).
    drafted: draft nodes verified for it. slo_drafted: how many of them the SLO phase chose.
    """

    id: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    verified: bool = False
    drafted: int = 0
    slo_drafted: int = 0
    finish: FinishReason | None = None
    result: RequestResult | None = None


class StatsNews(msgspec.Struct, array_like=True, frozen=True):
    """The engine after one step. `seconds`: how long that step's phases took."""

    running: int
    waiting: int
    kv_usage: float
    budget_rows: int
    used_rows: int
    step_time_error: float | None
    seconds: dict[str, float]


class StepNews(Message, frozen=True):
    """One iteration: what it brought each request, and how the engine stands. `at` is when it was committed."""

    at: float
    news: tuple[TokenNews, ...]
    stats: StatsNews


class Fatal(Message, frozen=True):
    """The engine gives up. `starting`: it never came up, because of what it was asked to load."""

    text: str
    starting: bool


ToEngine = Configure | Submit | Cancel
FromEngine = LoadingNews | Ready | StepNews | Fatal


class Codec:
    """Turns messages into frames and back. One per end of a connection; not shared between threads."""

    TO_ENGINE: ClassVar[object] = ToEngine
    FROM_ENGINE: ClassVar[object] = FromEngine

    def __init__(self, incoming: object) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(incoming)

    def frame(self, message: Message) -> bytes:
        """Encode a message behind its length."""
        body = self._encoder.encode(message)
        if len(body) > MAX_FRAME:
            raise EngineFailed(f"a message of {len(body)} bytes exceeds the frame limit of {MAX_FRAME}")
        return HEADER.pack(len(body)) + body

    def decode(self, body: bytes) -> Message:
        """Decode a frame's body; raises EngineFailed for anything but a message of the incoming types."""
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError, AdaServeError) as error:
            raise EngineFailed(f"malformed message between processes: {error}") from None

    @staticmethod
    def length(header: bytes) -> int:
        """Read a frame's length from its header; raises EngineFailed when it is beyond the limit."""
        (size,) = HEADER.unpack(header)
        if size > MAX_FRAME:
            raise EngineFailed(f"a frame announces {size} bytes, beyond the limit of {MAX_FRAME}")
        return int(size)
