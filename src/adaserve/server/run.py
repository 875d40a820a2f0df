"""Runs a server from start to end: loads, serves, drains on a signal, and exits non-zero when its engine dies."""

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import numpy as np
import uvicorn

from adaserve.clock import WallClock, unix_time
from adaserve.config import EngineConfig
from adaserve.errors import AdaServeError
from adaserve.models.registry import resolve
from adaserve.models.tokenizer import load_tokenizer
from adaserve.server.app import create_app
from adaserve.server.engine_link import EngineLink, WrongStart
from adaserve.server.limits import LimitedProtocol
from adaserve.server.messages import Ready
from adaserve.server.monitor import Monitor
from adaserve.server.problems import Stopping
from adaserve.server.service import ServerConfig, Service

ENGINE_DIED = 1
LAST_WRITES = 5
"""Seconds that the last bytes of ended answers may take to leave."""


class HttpServer(uvicorn.Server):
    """uvicorn's server, with signals that mean: finish what runs, then stop. A second signal stops at once."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], object]) -> None:
        super().__init__(config)
        self._on_signal = on_signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal; runs between two bytecodes of the main thread, so it only leaves a note."""
        self._on_signal()


class ServerRun:
    """One run of a server. `say` prints a line to the person who started it."""

    def __init__(self, engine: EngineConfig, server: ServerConfig, listener: socket.socket, say: Callable[[str], None]) -> None:
        self._engine = engine
        self._server = server
        self._listener = listener
        self._say = say
        self._signal = asyncio.Event()
        names = server.model_names or (engine.model,)
        self._monitor = Monitor(names[0], tuple(server.slos.classes))
        self._link = EngineLink(engine, say, self._monitor)
        seeds = np.random.default_rng(engine.seed % 2**64)
        self._service = Service(
            server,
            self._link,
            self._monitor,
            clock=WallClock(),
            draw_seed=lambda: int(seeds.integers(2**64, dtype=np.uint64)),
            unix_time=unix_time,
        )

    async def run(self, announce: Callable[[Ready], None]) -> int:
        """Serve until told to stop; returns the exit status. Raises what kept the server from coming up."""
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(
            create_app(self._service),
            http=LimitedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=LAST_WRITES,
        )
        http = HttpServer(config, lambda: loop.call_soon_threadsafe(self._signal.set))
        serving = asyncio.create_task(http.serve(sockets=[self._listener]))
        try:
            return await self._live(announce)
        finally:
            http.should_exit = True
            await asyncio.gather(serving, self._link.stop())

    async def _live(self, announce: Callable[[Ready], None]) -> int:
        signalled = asyncio.create_task(self._signal.wait())
        loading = asyncio.create_task(self._load())
        try:
            await asyncio.wait({signalled, loading}, return_when=asyncio.FIRST_COMPLETED)
            if signalled.done():
                return 0
            announce(loading.result())
            failed = asyncio.create_task(self._link.failed())
            await asyncio.wait({signalled, failed}, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                self._say(f"the engine failed: {self._link.failure}")
                await asyncio.wait({signalled}, timeout=self._server.linger)
                return ENGINE_DIED
            failed.cancel()
            await self._drain()
            return 0
        finally:
            loading.cancel()
            signalled.cancel()

    async def _load(self) -> Ready:
        """Start the engine process and load the tokenizer beside it."""
        source = resolve(self._engine.model)
        await self._link.start()
        tokenizer, facts = await asyncio.gather(asyncio.to_thread(load_tokenizer, source), self._link.ready())
        self._service.open(facts, tokenizer)
        return facts

    async def _drain(self) -> None:
        """Take no more calls, let the running ones finish within the grace time, and end what is left."""
        self._service.stopping = True
        if self._link.outstanding:
            self._say(f"stopping: {self._link.outstanding} requests may finish within {self._server.grace:g} s")
        drained = asyncio.create_task(self._service.drained())
        self._signal.clear()
        again = asyncio.create_task(self._signal.wait())
        await asyncio.wait({drained, again}, timeout=self._server.grace, return_when=asyncio.FIRST_COMPLETED)
        self._link.fail_streams(Stopping("this server is shutting down"))
        for task in (drained, again):
            task.cancel()


def run_server(
    engine: EngineConfig,
    server: ServerConfig,
    listener: socket.socket,
    say: Callable[[str], None],
    announce: Callable[[Ready], None],
) -> int:
    """Run a server on a bound socket; returns the exit status. Raises AdaServeError for a wrong start."""
    # Until uvicorn takes the signals over, they end the process as usual.
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            return runner.run(_run(engine, server, listener, say, announce))
        except WrongStart as error:
            raise AdaServeError(str(error)) from None


async def _run(
    engine: EngineConfig,
    server: ServerConfig,
    listener: socket.socket,
    say: Callable[[str], None],
    announce: Callable[[Ready], None],
) -> int:
    return await ServerRun(engine, server, listener, say).run(announce)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
