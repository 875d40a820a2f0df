"""Limits before parsing: header size and time at the connection, body size and time, JSON depth."""

import asyncio
import re
import socket
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from adaserve.server.problems import Kind, Problem

MAX_HEADER_BYTES = 32 * 1024
HEADER_TIMEOUT = 10.0
SEND_BUFFER = 128 * 1024

ABORT = "adaserve.abort"
"""ASGI extension under which an application may drop the connection at once, what was written and not read included."""

_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)


@dataclass(frozen=True)
class CallLimits:
    """What one call may cost before it is understood, and while it is answered.

    body_bytes, body_seconds: size of a body, and how long it may take to come. json_depth: nesting of brackets.
    prompts: prompts of one text completion. sequences: prompts times n.
    pending_tokens: tokens that a slow reader may leave unread before its requests are cancelled.
    """

    body_bytes: int = 8 * 1024 * 1024
    body_seconds: float = 30.0
    json_depth: int = 32
    prompts: int = 256
    sequences: int = 512
    pending_tokens: int = 2048


async def read_json(request: Request, limits: CallLimits) -> Any:
    """Read and decode a JSON body within the limits; raises Problem."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise Problem(Kind.NOT_JSON, "the content type must be application/json")
    try:
        async with asyncio.timeout(limits.body_seconds):
            body = await _read(request, limits.body_bytes)
    except TimeoutError:
        raise Problem(Kind.TIMEOUT, f"the body did not come within {limits.body_seconds:g} s") from None
    return decode_json(body, limits.json_depth)


async def _read(request: Request, most: int) -> bytes:
    """Read the body. One that is too large is read a little further, so that the client gets to see the answer."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= most:
            parts.append(part)
        elif size > 4 * most:
            break
    declared = request.headers.get("content-length", "0")
    if size > most or (declared.isdecimal() and int(declared) > most):
        raise Problem(Kind.TOO_LARGE, f"the body exceeds {most} bytes")
    return b"".join(parts)


def decode_json(body: bytes, depth: int) -> Any:
    """Decode JSON whose brackets nest no deeper than `depth`; NaN, infinities and lone surrogates are refused."""
    # Counting is enough for almost every body; only then look at where the brackets stand.
    if body.count(b"[") + body.count(b"{") > depth and _nesting(body, depth) > depth:
        raise Problem(Kind.INVALID, f"the body nests deeper than {depth} levels")
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise Problem(Kind.INVALID, f"the body is not valid JSON: {' '.join(str(error).split())[:120]}") from None


def _nesting(body: bytes, enough: int) -> int:
    """Deepest nesting of brackets outside strings; stops looking beyond `enough`."""
    level = deepest = 0
    for match in _BRACKETS.finditer(body):
        character = body[match.start()]
        if character in b"[{":
            level += 1
            deepest = max(deepest, level)
            if deepest > enough:
                break
        elif character in b"]}":
            level -= 1
    return deepest


async def _refuse_head(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a call whose head is too large."""
    problem = Problem(Kind.HEAD_TOO_LARGE, f"the request line and headers exceed {MAX_HEADER_BYTES} bytes")
    await JSONResponse(problem.body, problem.status, problem.headers)(scope, receive, send)


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with a limit on the size of a request's head and on the time that it may take to come."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # The kernel would otherwise buffer megabytes for a client that does not read, long before we noticed.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_done()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_timer is not None:
            self._head_bytes += len(data)
            # The body may share packets with the head, so this hard stop leaves room; the exact limit is checked below.
            if self._head_bytes > 2 * MAX_HEADER_BYTES + HIGH_WATER_LIMIT:
                self._give_up()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: {"abort": self.transport.abort}}
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_done()
        app = self.app
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEADER_BYTES:
            self.app = _refuse_head
        super().on_headers_complete()
        self.app = app

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_bytes = 0
            self._head_timer = self.loop.call_later(HEADER_TIMEOUT, self._give_up)

    def _head_done(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        """Close a connection whose head does not come to an end."""
        self._head_done()
        self.transport.close()
