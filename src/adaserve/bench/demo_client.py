"""The demo's client: streams requests over HTTP in open loop, and measures what arrives where a user would.

Open loop: requests leave when the workload says so, however slow the answers are, and an answer's time counts from when its
request was due. What is measured are deliveries; several tokens may come in one.
"""

import asyncio
import itertools
from collections.abc import Iterable
from typing import Any

from adaserve.bench.http_client import HttpClient, Letter
from adaserve.bench.open_loop import Answer, Tally, open_loop
from adaserve.clock import Clock
from adaserve.errors import AdaServeError
from adaserve.workload import Arrival

__all__ = ["Answer", "Client", "Tally", "closed_loop", "open_loop"]

PILOT_LIMIT = 120.0
"""Seconds that a pilot may take on a slow machine."""


class Client(HttpClient):
    """Talks to one server. `baseline` is the server's, in s/token; targets that are multiples of it are resolved here too.

    Requests name their SLO class; the server must have been started with the workload's classes.
    """

    def __init__(self, base_url: str, model: str, baseline: float, clock: Clock) -> None:
        super().__init__(base_url, self._letter, baseline, clock)
        self._model = model

    def _letter(self, arrival: Arrival) -> Letter:
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": arrival.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if arrival.slo is not None:
            body["slo"] = arrival.class_name
        if arrival.ignore_eos:
            body["ignore_eos"] = True
        if arrival.chat:
            return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": arrival.prompt}]}, {}
        return "/v1/completions", {**body, "prompt": arrival.prompt}, {}


async def closed_loop(
    client: Client, arrivals: Iterable[Arrival], running: int, seconds: float, clock: Clock, limit: float = PILOT_LIMIT
) -> float:
    """Keep `running` requests in flight; returns how many are completed per second.

    Goes on for `seconds`, and longer, up to `limit`, until three times as many as run at once have ended. The first ones
    started together, which no later ones do, so the count begins when as many as run at once have ended.
    Raises AdaServeError when hardly any end.
    """
    queue = itertools.cycle(arrivals)
    ended: list[float] = []
    start = clock.now()

    async def worker() -> None:
        while True:
            answer = await client.ask("pilot", next(queue), clock.now())
            if answer.error is not None:
                raise AdaServeError(f"the server does not answer: {answer.error}")
            ended.append(clock.now())

    workers = [asyncio.create_task(worker()) for _ in range(running)]
    try:
        while clock.now() < start + (seconds if len(ended) >= 3 * running else limit):
            failed, _ = await asyncio.wait(workers, timeout=0.1)
            for task in failed:
                task.result()
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    if len(ended) <= running:
        raise AdaServeError(f"only {len(ended)} requests ended within {limit:g} s; choose the load with --rate")
    return (len(ended) - running) / (ended[-1] - ended[running - 1])
