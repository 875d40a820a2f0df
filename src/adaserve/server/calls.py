"""From the engine's news to a call's answer: whole or streamed, and cancelled the moment nobody waits for it."""

import asyncio
import logging
from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adaserve.errors import AdaServeError
from adaserve.server.answers import GrowingAnswer, Json
from adaserve.server.choice import Piece
from adaserve.server.engine_link import EngineLink
from adaserve.server.limits import ABORT
from adaserve.server.monitor import Monitor
from adaserve.server.problems import OutOfReach, RequestFailed, problem_of
from adaserve.server.streams import SlowReader, Stream

logger = logging.getLogger("adaserve.server")

DONE = b"data: [DONE]\n\n"
LAST_WORDS = 1.0
"""Seconds that a broken stream's error may take to reach a client that may not be reading."""


class Call:
    """One call's answer and the stream that feeds it. However the call ends, the engine keeps nothing of it."""

    def __init__(self, answer: GrowingAnswer, stream: Stream, link: EngineLink, monitor: Monitor) -> None:
        self.answer = answer
        self.stream = stream
        self._link = link
        self._monitor = monitor
        self._place = {choice.request.id: index for index, choice in enumerate(answer.choices)}

    async def pieces(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        """Follow the call to its end: batches of (choice, piece). Raises what broke the stream, OutOfReach and RequestFailed."""
        while not self.answer.finished:
            batch = []
            for at, news in await self.stream.take():
                index = self._place[news.id]
                choice = self.answer.choices[index]
                halted = choice.stopped
                piece = choice.push(at, news)
                if choice.stopped and not halted and news.finish is None:
                    self._link.halt(news.id)
                if news.finish is not None and choice.result is not None:
                    self._monitor.ended(choice.request, choice.result)
                if choice.finish == "refused":
                    raise OutOfReach(choice.request.targets)
                if choice.finish in ("error", "cancelled"):
                    raise RequestFailed("the engine could not finish this request")
                batch.append((index, piece))
            yield batch

    def close(self) -> None:
        """Cancel what has not ended."""
        self._link.cancel_all(self.stream)

    async def whole(self, request: HttpRequest) -> Json | None:
        """Wait for the answer as one object; None when the client has gone."""
        collect = asyncio.create_task(self._collect())
        gone = asyncio.create_task(disconnected(request.receive))
        try:
            await asyncio.wait({collect, gone}, return_when=asyncio.FIRST_COMPLETED)
            return self.answer.whole(await collect) if collect.done() else None
        finally:
            collect.cancel()
            gone.cancel()
            self.close()

    async def _collect(self) -> list[list[Piece]]:
        pieces: list[list[Piece]] = [[] for _ in self.answer.choices]
        async for batch in self.pieces():
            for index, piece in batch:
                pieces[index].append(piece)
        return pieces


async def disconnected(receive: Receive) -> None:
    """Wait until the client has gone. The body has been read, so nothing else can come."""
    while (await receive())["type"] != "http.disconnect":
        pass


def event(data: object) -> bytes:
    """Encode one server-sent event."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


class EventStream(Response):
    """A streamed answer. The engine never waits for its reader: one that falls too far behind is cut off."""

    media_type = "text/event-stream"

    def __init__(self, call: Call, include_usage: bool, headers: dict[str, str]) -> None:
        self._call = call
        self._include_usage = include_usage
        super().__init__(headers=headers | {"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(self._pump(send))
        gone = asyncio.create_task(disconnected(receive))
        broken = asyncio.create_task(self._call.stream.broken())
        try:
            await asyncio.wait({pump, gone, broken}, return_when=asyncio.FIRST_COMPLETED)
            if broken.done() and not gone.done():
                await asyncio.wait({pump, gone}, timeout=LAST_WORDS, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
            elif not gone.done():
                logger.warning("%s: cut off, its client does not read", self._call.answer.id)
                scope.get("extensions", {}).get(ABORT, {}).get("abort", lambda: None)()
                await asyncio.wait({gone}, timeout=LAST_WORDS)
        finally:
            for task in (pump, gone, broken):
                task.cancel()
            self._call.close()

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for batch in self._call.pieces():
                if data := self._events(batch):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            last = event(self._call.answer.usage_chunk()) if self._include_usage else b""
        except AdaServeError as error:
            if not isinstance(error, SlowReader):
                logger.warning("%s: broken off: %s", self._call.answer.id, error)
            last = event(problem_of(error).body)
        await send({"type": "http.response.body", "body": last + DONE, "more_body": False})

    def _events(self, batch: list[tuple[int, Piece]]) -> bytes:
        answer = self._call.answer
        ending = max((place for place, (_, piece) in enumerate(batch) if piece.finish), default=-1) if answer.finished else -1
        chunks = [answer.chunk(index, piece, place == ending, self._include_usage) for place, (index, piece) in enumerate(batch)]
        return b"".join(event(chunk) for chunk in chunks if chunk is not None)
