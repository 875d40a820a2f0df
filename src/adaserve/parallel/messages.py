"""What rank 0 and the other ranks say to each other outside the passes: typed, length-prefixed MessagePack over a socket.

    rank 0  --Load, Serve, then for every step Plan, Tree and Commit-->  another rank
            <--Here, Loaded, Failed--

Frames are decoded against the types below and nothing else: torch's own way to broadcast an object is a pickle, which runs code,
is larger, and hides what travels. A socket it is and not a collective, because a rank waits for the next plan as long as nobody
asks for anything, while a collective that nobody joins for minutes is an error; and because a socket that closes says at once
that its other end has died.
"""

import socket
import struct
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from adaserve.errors import AdaServeError, EngineFailed
from adaserve.framing import receive_exactly
from adaserve.step import StepPlan

_HEADER = struct.Struct("<I")
_MOST = 256 * 1024 * 1024
"""Bytes of a frame."""


class Message(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Base of all messages; subclasses are told apart by a tag."""


class Load(Message, frozen=True):
    """The first message: which rank to be, and of what to load a share.

    name, path, format: of the model, as in ModelSource. dtype: of the weights, e.g. `bfloat16`. device: `cpu` or `cuda`.
    threads: CPU threads. timeout: seconds that a rank waits for another one.
    """

    rank: int
    size: int
    name: str
    path: str
    format: str
    dtype: str
    device: str
    threads: int
    timeout: float


class Serve(Message, frozen=True):
    """All have loaded: the sizes to serve with, as in Sizes."""

    slots: int
    length: int
    pages: int
    page_size: int


class Plan(Message, frozen=True):
    """A step begins: what it does, whole. The slots and pages of all ranks are kept alike by it."""

    plan: StepPlan


class Tree(Message, frozen=True):
    """The trees that follow by broadcast: of so many requests, padding included, with so many candidate columns."""

    requests: int
    columns: int


class Commit(Message, frozen=True):
    """Rank 0 commits its step, and may run the next one ahead: before, others would wait for it in a collective."""


class Here(Message, frozen=True):
    """A rank is ready to meet the others."""


class Loaded(Message, frozen=True):
    """A rank has its share; room: bytes that are free on its GPU, or None on a CPU."""

    room: int | None


class Failed(Message, frozen=True):
    """A rank gives up, and why. wanted: because of what it was asked to load, and not by accident."""

    text: str
    wanted: bool


ToRank = Load | Serve | Plan | Tree | Commit
FromRank = Here | Loaded | Failed


@dataclass(frozen=True)
class Link:
    """One end of a connection between rank 0 and another rank: blocking; one thread sends and one receives."""

    connection: socket.socket

    def send(self, message: Message) -> None:
        """Send one message; raises EngineFailed when the other end has gone."""
        body = msgspec.msgpack.encode(message)
        try:
            self.connection.sendall(_HEADER.pack(len(body)) + body)
        except OSError as error:
            raise EngineFailed("another rank of the tensor-parallel engine has gone") from error

    def hear(self) -> ToRank | None:
        """The next message from rank 0; None when it has gone. Raises EngineFailed for anything else."""
        body = self._body()
        return None if body is None else _decode(body, _TO_RANK)

    def answer(self) -> FromRank | None:
        """The next message to rank 0; None when its sender has gone. Raises EngineFailed for anything else."""
        body = self._body()
        return None if body is None else _decode(body, _FROM_RANK)

    def close(self) -> None:
        """Hang up."""
        self.connection.close()

    def _body(self) -> bytes | None:
        header = receive_exactly(self.connection, _HEADER.size)
        if header is None:
            return None
        (size,) = _HEADER.unpack(header)
        if size > _MOST:
            raise EngineFailed(f"a message between ranks announces {size} bytes, beyond the limit of {_MOST}")
        return receive_exactly(self.connection, size)


_TO_RANK: "msgspec.msgpack.Decoder[ToRank]" = msgspec.msgpack.Decoder(ToRank)
_FROM_RANK: "msgspec.msgpack.Decoder[FromRank]" = msgspec.msgpack.Decoder(FromRank)


M = TypeVar("M")


def _decode(body: bytes, decoder: "msgspec.msgpack.Decoder[M]") -> M:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError, AdaServeError) as error:
        raise EngineFailed(f"malformed message between ranks: {error}") from None
