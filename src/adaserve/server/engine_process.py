"""The engine process: reads requests from a local socket, steps the engine, sends news back.

Started by the HTTP process as `python -m adaserve.server.engine_process SOCKET`. Two threads: one reads the socket into the
engine's inbox, the main one steps. When the socket closes, because the HTTP process stopped or died, this process ends.
"""

import gc
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from adaserve.clock import Clock, WallClock
from adaserve.errors import EngineFailed
from adaserve.framing import in_one_line, receive_exactly
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
from adaserve.step import PhaseTimes

if TYPE_CHECKING:
    from adaserve.build import BuiltEngine
    from adaserve.engine import Engine, StepReport

LINGER = 2.0
"""Seconds that a step in progress may still take after the HTTP process has gone."""


class Wire:
    """This end of the socket: blocking, one reader thread and one writer thread at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = Codec(Codec.TO_ENGINE)
        self._writer = Codec(Codec.FROM_ENGINE)

    def send(self, message: Message) -> None:
        """Send one message; raises OSError when the HTTP process has gone."""
        self._connection.sendall(self._writer.frame(message))

    def receive(self) -> Message | None:
        """Return the next message, or None when the HTTP process has closed the socket."""
        header = receive_exactly(self._connection, HEADER.size)
        body = None if header is None else receive_exactly(self._connection, Codec.length(header))
        return None if body is None else self._reader.decode(body)


def step_news(report: "StepReport", at: float) -> StepNews:
    """Put one iteration on the wire; `at` is the time of its commit."""
    return StepNews(at, token_news(report), stats_news(report))


def token_news(report: "StepReport") -> tuple[TokenNews, ...]:
    """Put what a step brought each request on the wire. Decoding requests come last in a report, in the plan's order."""
    decoding = 0 if report.outcome is None else len(report.outcome.plan.decoding)
    drafted = Counter[int]() if report.outcome is None else Counter(report.outcome.drafted.request)
    first = len(report.updates) - decoding
    news = []
    for position, update in enumerate(report.updates):
        row = position - first  # which of the n decoding requests; negative for cancelled ones and for prompts
        for_slo = report.slo_selected[row] if 0 <= row < len(report.slo_selected) else 0
        news.append(
            TokenNews(
                id=update.id,
                tokens=update.tokens,
                logprobs=update.logprobs,
                verified=row >= 0,
                drafted=drafted[row],
                slo_drafted=for_slo,
                finish=update.finish,
                result=update.result,
            )
        )
    return tuple(news)


def stats_news(report: "StepReport") -> StatsNews:
    """Put the engine's state after a step on the wire."""
    stats = report.stats
    times = PhaseTimes() if report.outcome is None else report.outcome.times
    return StatsNews(
        running=stats.running,
        waiting=stats.waiting,
        kv_usage=stats.kv_usage,
        budget_rows=stats.budget_rows,
        used_rows=stats.used_rows,
        step_time_error=stats.step_time_error,
        seconds=asdict(times),
    )


class EngineLoop:
    """Steps the engine while a second thread feeds its inbox; sleeps while there is nothing to do."""

    def __init__(self, wire: Wire, clock: Clock) -> None:
        self._wire = wire
        self._clock = clock
        self._wake = threading.Event()
        self._gone = threading.Event()
        self._engine: Engine | None = None

    def read(self) -> None:
        """Feed the inbox until the socket closes; then end the process, even out of a step or a load that hangs."""
        try:
            while (message := self._wire.receive()) is not None:
                if self._engine is None:
                    raise EngineFailed("a request came before the engine was ready")
                if isinstance(message, Submit):
                    self._engine.add(message.request)
                elif isinstance(message, Cancel):
                    self._engine.cancel(message.id)
                self._wake.set()
        finally:
            self._gone.set()
            self._wake.set()
            time.sleep(LINGER)
            os._exit(0)

    def run(self, built: "BuiltEngine") -> None:
        """Announce the engine, then step it until the HTTP process has gone.

        The wake-up is cleared before each step, so a message that comes during the step is never slept through.
        """
        self._engine = engine = built.engine
        gc.collect()
        gc.freeze()  # what was loaded stays: looking through all of it for garbage now and then would stop everybody
        self._wire.send(
            Ready(
                model_name=built.model_name,
                max_model_len=built.max_model_len,
                vocab_size=built.vocab_size,
                baseline=built.baseline,
                eos_ids=tuple(built.eos_ids),
                description=built.description,
                shared=tuple(built.profile.shared_ms(n) / 1e3 for n in range(1, built.slots + 1)),
            )
        )
        while not self._gone.is_set():
            self._wake.clear()
            report = engine.step()
            if report is None:
                self._wake.wait()
            else:
                self._wire.send(step_news(report, self._clock.now()))


def main(arguments: list[str]) -> int:
    """Run the process; returns its exit status: 0 after the HTTP process has gone, 2 for a wrong start, 1 for a failure."""
    # The HTTP process decides when to stop; signals meant for the whole group must not cut running answers off.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(arguments[0])
    wire = Wire(connection)
    loop = EngineLoop(wire, WallClock())
    starting = True
    try:
        first = wire.receive()
        if not isinstance(first, Configure):
            raise EngineFailed("the first message must say what engine to build")
        threading.Thread(target=loop.read, daemon=True).start()
        from adaserve.build import build_engine  # this is where torch is loaded

        built = build_engine(first.config, lambda text: wire.send(LoadingNews(text)))
        starting = False
        try:
            loop.run(built)
        finally:
            built.close()
        return 0
    except (BrokenPipeError, ConnectionResetError):
        return 0
    except Exception as error:
        wire.send(Fatal(in_one_line(error), starting))
        return 2 if starting else 1


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is left to save, and unwinding torch's threads can take seconds for which the server's end would wait.
    os._exit(status)
