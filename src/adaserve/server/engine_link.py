"""The HTTP process's end of the engine: starts it, sends it requests, spreads its news, notices its death."""

import asyncio
import contextlib
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from adaserve.config import EngineConfig
from adaserve.errors import AdaServeError, EngineFailed
from adaserve.metrics import RequestResult
from adaserve.request import Request
from adaserve.server.messages import (
    HEADER,
    Cancel,
    Codec,
    Configure,
    Fatal,
    LoadingNews,
    Message,
    Ready,
    StatsNews,
    StepNews,
    Submit,
    TokenNews,
)
from adaserve.server.streams import Stream

logger = logging.getLogger("adaserve.server")

CONNECT_TIMEOUT = 60.0
"""Seconds that a fresh interpreter may take to connect."""

STOP_TIMEOUT = 5.0
"""Seconds that the engine process may take to end after its socket was closed."""


class EngineState(Enum):
    """How far the engine process is."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class WrongStart(AdaServeError):
    """The engine never came up, because of what it was asked to load."""


class Observer(Protocol):
    """Who counts what passes through the link."""

    def step(self, stats: StatsNews) -> None:
        """Take in the engine's state after a step."""
        ...

    def news(self, request: Request, at: float, news: TokenNews) -> None:
        """Take in what a step brought a request at time `at`."""
        ...

    def ended(self, request: Request, result: RequestResult) -> None:
        """Take in the account of a request that nobody waits for any more."""
        ...

    def engine_gone(self) -> None:
        """The engine died."""
        ...


class EngineLink:
    """One engine process and the streams of the calls that wait for it.

    progress gets the lines that the loading engine prints.
    """

    def __init__(self, config: EngineConfig, progress: Callable[[str], None], observer: Observer) -> None:
        self._config = config
        self._progress = progress
        self._observer = observer
        self._codec = Codec(Codec.FROM_ENGINE)
        self._requests: dict[str, Request] = {}  # what the engine holds, whether or not somebody waits for it
        self._streams: dict[str, Stream] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ready: Ready | None = None
        self._changed = asyncio.Event()
        self.state = EngineState.LOADING
        self.failure: AdaServeError | None = None

    @property
    def outstanding(self) -> int:
        """Requests that the engine holds: waiting, running, or cancelled and not yet gone."""
        return len(self._requests)

    @property
    def process_id(self) -> int | None:
        """The engine process's id, once it was started."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the engine process and tell it what to build; returns once it has connected.

        The socket lies in a private directory (mode 0700) that is removed as soon as the engine has connected.
        """
        directory = tempfile.mkdtemp(prefix="adaserve-")
        connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.get_running_loop().create_future()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if connected.done():
                writer.close()
            else:
                connected.set_result((reader, writer))

        try:
            path = str(Path(directory) / "engine.sock")
            server = await asyncio.start_unix_server(accept, path)
            # Its own session: a Ctrl-C in the terminal is for the HTTP process, which then lets answers finish.
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "adaserve.server.engine_process", path,
                stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            exited = asyncio.ensure_future(self._process.wait())
            first: set[asyncio.Future[Any]] = {connected, exited}
            await asyncio.wait(first, timeout=CONNECT_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            exited.cancel()
            if not connected.done():
                self._fail(EngineFailed("the engine process did not start"))
                await self.stop()
                return
            reader, self._writer = connected.result()
            # No wait_closed here: it would wait for the engine's own connection.
            server.close()
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        self._send(Configure(self._config))
        self._tasks.append(asyncio.create_task(self._read(reader)))

    async def ready(self) -> Ready:
        """Wait until the engine is up; returns its facts, raises WrongStart or EngineFailed if it does not come up."""
        while self._ready is None and self.failure is None:
            self._changed.clear()
            await self._changed.wait()
        if self.failure is not None:
            raise self.failure
        assert self._ready is not None
        return self._ready

    async def failed(self) -> None:
        """Wait until the engine has failed."""
        while self.failure is None:
            self._changed.clear()
            await self._changed.wait()

    def submit(self, requests: list[Request], max_pending: int) -> Stream:
        """Send the requests of one call; returns the stream of their news. Raises EngineFailed unless the engine is up."""
        if self.state is not EngineState.READY:
            raise self.failure or EngineFailed("the engine is still loading")
        stream = Stream(tuple(request.id for request in requests), max_pending)
        for request in requests:
            self._requests[request.id] = request
            self._streams[request.id] = stream
            self._send(Submit(request))
        return stream

    def halt(self, request_id: str) -> None:
        """Tell the engine that a request has all it needs; its stream still gets its last news. Ended ones are ignored."""
        if request_id in self._requests and self.state is EngineState.READY:
            self._send(Cancel(request_id))

    def cancel(self, request_id: str) -> None:
        """Tell the engine that nobody waits for this request any more; its stream hears no more of it."""
        if self._streams.pop(request_id, None) is not None:
            self.halt(request_id)

    def cancel_all(self, stream: Stream) -> None:
        """Cancel every request of a call that has not ended."""
        for request_id in stream.open_ids:
            self.cancel(request_id)

    def fail_streams(self, failure: AdaServeError) -> None:
        """Cancel everything that runs; whoever waits gets `failure`."""
        for stream in set(self._streams.values()):
            self.cancel_all(stream)
            stream.fail(failure)

    async def stop(self) -> None:
        """Close the socket, which ends the engine process; kill it if it does not end in time."""
        for task in self._tasks:
            task.cancel()
        if self._writer is not None:
            self._writer.close()
        if self._process is not None and self._process.returncode is None:
            try:
                await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()

    def _send(self, message: Message) -> None:
        assert self._writer is not None
        self._writer.write(self._codec.frame(message))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Take the engine's messages until its socket closes, which it does when the process dies, however it dies."""
        try:
            while True:
                header = await reader.readexactly(HEADER.size)
                self._take(self._codec.decode(await reader.readexactly(Codec.length(header))))
        except (asyncio.IncompleteReadError, OSError):
            self._fail(EngineFailed("the engine process died"))
        except EngineFailed as error:
            self._fail(error)
        except Exception:
            logger.exception("unforeseen error while reading the engine's news")
            self._fail(EngineFailed("the engine's news could not be read"))

    def _take(self, message: Message) -> None:
        if isinstance(message, StepNews):
            self._spread(message)
        elif isinstance(message, LoadingNews):
            self._progress(message.text)
        elif isinstance(message, Ready):
            self._ready = message
            self.state = EngineState.READY
            self._changed.set()
        elif isinstance(message, Fatal):
            self._fail(WrongStart(message.text) if message.starting else EngineFailed(message.text))

    def _spread(self, step: StepNews) -> None:
        for news in step.news:
            request = self._requests.get(news.id)
            stream = self._streams.get(news.id)
            if request is not None:
                self._observer.news(request, step.at, news)
            if news.finish is not None:
                self._requests.pop(news.id, None)
                self._streams.pop(news.id, None)
                if stream is None and request is not None and news.result is not None:
                    self._observer.ended(request, news.result)
            if stream is not None and not stream.push(step.at, news):
                self.cancel_all(stream)
        self._observer.step(step.stats)

    def _fail(self, failure: AdaServeError) -> None:
        if self.failure is None:
            self.failure = failure
            self.state = EngineState.FAILED
            streams = set(self._streams.values())
            self._requests.clear()
            self._streams.clear()
            for stream in streams:
                stream.fail(failure)
            self._observer.engine_gone()
            self._changed.set()
