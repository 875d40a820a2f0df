"""What processes of ours that talk over sockets share: whole messages or none, and errors that fit one line."""

import socket
import traceback

from adaserve.errors import AdaServeError

PIECE = 1 << 20
"""Bytes asked for at once."""


def receive_exactly(connection: socket.socket, size: int) -> bytes | None:
    """The next `size` bytes from a blocking socket; None when the other end goes before they are there."""
    parts: list[bytes] = []
    while size > 0:
        try:
            part = connection.recv(min(size, PIECE))
        except OSError:
            return None
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def in_one_line(error: Exception) -> str:
    """What another process is told of an error; one that is none of ours is printed here too, with where it came from."""
    known = isinstance(error, AdaServeError)
    if not known:
        traceback.print_exception(error)
    return " ".join((str(error) if known else f"{type(error).__name__}: {error}").split())
