"""What a running server consists of: its options, the engine link, the tokenizer and the door, and whether it takes calls."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from adaserve.clock import Clock
from adaserve.errors import InvalidRequest, Overloaded
from adaserve.models.tokenizer import Tokenizer
from adaserve.request import Request
from adaserve.server.admission import Door
from adaserve.server.engine_link import EngineLink, EngineState
from adaserve.server.limits import CallLimits
from adaserve.server.messages import Ready
from adaserve.server.monitor import Monitor
from adaserve.server.problems import Kind, Problem
from adaserve.server.slo import SLOBook
from adaserve.server.streams import Stream

RETRY_LOADING = 5.0
LARGEST_RETRY = 60.0


@dataclass(frozen=True)
class ServerConfig:
    """Options of the HTTP process.

    model_names: names that calls may use, the first in answers; empty for the model's own.
    api_keys: keys that open the server; none for an open one.
    running, waiting: requests that the engine runs at once, and that may wait beside them before more are refused.
    grace: seconds that running answers get to finish when the server is told to stop.
    linger: seconds for which a server whose engine died still says so before it exits.
    """

    model_names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    slos: SLOBook = field(default_factory=SLOBook)
    limits: CallLimits = field(default_factory=CallLimits)
    running: int = 64
    waiting: int = 1024
    grace: float = 30.0
    linger: float = 2.0


class Service:
    """The parts of one server, passed to whoever needs them.

    clock: the engine's, from which arrivals are read. draw_seed: for requests without a seed. unix_time: for `created`.
    """

    def __init__(
        self,
        config: ServerConfig,
        link: EngineLink,
        monitor: Monitor,
        clock: Clock,
        draw_seed: Callable[[], int],
        unix_time: Callable[[], int],
    ) -> None:
        self.config = config
        self.link = link
        self.monitor = monitor
        self.clock = clock
        self.unix_time = unix_time
        self.created = unix_time()
        self.model_names = config.model_names
        self.stopping = False
        self._draw_seed = draw_seed
        self._door: Door | None = None

    def open(self, facts: Ready, tokenizer: Tokenizer) -> None:
        """Start to take calls: the engine is up and the tokenizer is there."""
        self.model_names = self.config.model_names or (facts.model_name,)
        self._door = Door(facts, tokenizer, self.config.slos, self.config.limits, self._draw_seed)

    @property
    def door(self) -> Door:
        """The door; raises Problem while the server loads, after it was told to stop, and when its engine has died."""
        if self.link.state is EngineState.FAILED:
            raise Problem(Kind.FAILED, "the engine failed; this server is going to restart", retry_after=RETRY_LOADING)
        if self.stopping:
            raise Problem(Kind.STOPPING, "this server is shutting down", retry_after=RETRY_LOADING)
        if self._door is None:
            raise Problem(Kind.LOADING, "the model is still loading", retry_after=RETRY_LOADING)
        return self._door

    def check_room(self, requests: int) -> None:
        """Raise Overloaded when the engine and its queue cannot take so many more requests now, InvalidRequest if never."""
        most = self.config.running + self.config.waiting
        if requests > most:
            raise InvalidRequest(f"the call asks for {requests} sequences; this server holds {most}", "n")
        room = most - self.link.outstanding
        if requests > room:
            self.monitor.refused.inc()
            # Rough, but honest in its trend: a slot's worth of waiting requests takes about a mean request's time.
            turns = self.link.outstanding / self.config.running
            wait = min(LARGEST_RETRY, max(1.0, turns * self.monitor.mean_latency()))
            raise Overloaded(f"the queue is full: {self.link.outstanding} requests run or wait; try again later", wait)

    def submit(self, requests: list[Request]) -> Stream:
        """Send a call's requests to the engine."""
        self.check_room(len(requests))
        return self.link.submit(requests, self.config.limits.pending_tokens)

    async def drained(self) -> None:
        """Wait until the engine holds no request."""
        while self.link.outstanding and self.link.state is EngineState.READY:
            await asyncio.sleep(0.02)
