"""Open loop over HTTP: requests leave when the workload says so, however slow the answers are; and the streams that they bring.

An answer's time counts from when its request was due. What is measured are deliveries; several tokens may come in one.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from adaserve.clock import Clock
from adaserve.metrics import RequestResult
from adaserve.request import FinishReason
from adaserve.workload import Arrival, Workload

DRAIN = 60.0
"""Seconds that answers may take after the last request was sent; what is unfinished then has missed its target."""

REFUSALS = (429, 503)
FINISH = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


@dataclass(frozen=True)
class Answer:
    """One request's fate: its result by the client's clock, its text, and the server's own verdict (None: it gave none)."""

    result: RequestResult
    text: str
    met: bool | None
    refused: bool = False
    error: str | None = None


class Asker(Protocol):
    """A client: sends one request, and knows what to say of one that nobody waits for any longer."""

    async def ask(self, name: str, arrival: Arrival, due: float) -> Answer:
        """Send a request that is due at `due` and take its answer in; never raises for what the server does."""
        ...

    def unfinished(self, name: str, arrival: Arrival, due: float) -> Answer:
        """The fate of a request that is given up."""
        ...


class Tally:
    """Counts of one run that a progress line shows while it goes on."""

    def __init__(self) -> None:
        self.sent = 0
        self.answers: list[Answer] = []

    @property
    def in_flight(self) -> int:
        """Requests sent and not yet answered."""
        return self.sent - len(self.answers)

    @property
    def judged(self) -> list[bool]:
        """The verdicts so far on requests with targets."""
        return [answer.result.attained for answer in self.answers if answer.result.attained is not None]

    @property
    def attained(self) -> float | None:
        """Share of the answers so far that met their targets; None before the first."""
        return sum(self.judged) / len(self.judged) if self.judged else None


class Take:
    """Takes in the events of one stream. Times are on the caller's clock."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.last: float | None = None
        self.longest_gap = 0.0
        self.pieces: list[str] = []
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.met: bool | None = None
        self.finish: FinishReason | None = None
        self.error: str | None = None

    def event(self, event: dict[str, Any], now: float, deliver: Callable[[str], None] | None) -> None:
        if "error" in event:
            self.error = str(event["error"].get("message", event["error"]))
        for choice in event.get("choices", ()):
            text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
            if text:
                self.longest_gap = max(self.longest_gap, 0.0 if self.last is None else now - self.last)
                self.first = now if self.first is None else self.first
                self.last = now
                self.pieces.append(text)
                if deliver is not None:
                    deliver(text)
            if choice.get("finish_reason"):
                self.finish = FINISH.get(choice["finish_reason"])
        if usage := event.get("usage"):
            self.prompt_tokens, self.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        if slo := (event.get("metrics") or {}).get("slo"):
            self.met = slo.get("met")


async def events(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream of server-sent events."""
    async for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[6:])


def reason(body: bytes) -> str:
    """What an error's body says."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace") or "no reason given"


async def open_loop(
    client: Asker, workload: Workload, clock: Clock, tally: Tally, stop: asyncio.Event, drain: float = DRAIN
) -> float:
    """Send each request when it is due; return when all are answered, `drain` seconds after the last, or when `stop` is set.

    Answers gather in `tally`; what `stop` cuts off is left out, what the end of `drain` cuts off has missed its target.
    Returns the start, in seconds on `clock`.
    """
    start = clock.now()
    running: dict[asyncio.Task[Answer], tuple[str, Arrival, float]] = {}

    def done(task: asyncio.Task[Answer]) -> None:
        running.pop(task, None)
        if not task.cancelled():
            tally.answers.append(task.result())

    for number, arrival in enumerate(workload.arrivals):
        due = start + arrival.at
        if await _stopped_before(due, clock, stop):
            break
        tally.sent += 1
        task = asyncio.create_task(client.ask(str(number), arrival, due))
        running[task] = (str(number), arrival, due)
        task.add_done_callback(done)
    limit = clock.now() + drain
    while running and clock.now() < limit and not stop.is_set():
        await asyncio.wait([*running], timeout=0.2)
    cut = {task: request for task, request in running.items() if not task.done()}
    for task in cut:
        task.cancel()
    await asyncio.gather(*cut, return_exceptions=True)
    if stop.is_set():
        tally.sent -= len(cut)
    else:
        tally.answers += [client.unfinished(*request) for request in cut.values()]
    return start


async def _stopped_before(when: float, clock: Clock, stop: asyncio.Event) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), max(when - clock.now(), 0))
    return stop.is_set()
