"""The demo's client: streams requests over HTTP in open loop, and measures what arrives where a user would.

Open loop: requests leave when the workload says so, however slow the answers are, and an answer's time counts from when its
request was due. What is measured are deliveries; several tokens may come in one.
"""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpx

from adaserve.clock import Clock
from adaserve.errors import AdaServeError
from adaserve.metrics import RequestResult
from adaserve.request import FinishReason, Targets
from adaserve.workload import Arrival, Workload

DRAIN = 60.0
"""Seconds that answers may take after the last request was sent; what is unfinished then has missed its target."""

PILOT_LIMIT = 120.0
"""Seconds that a pilot may take on a slow machine."""

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
    def attained(self) -> float | None:
        """Share of the answers so far that met their targets; None before the first."""
        met = [answer.result.attained for answer in self.answers if answer.result.attained is not None]
        return sum(met) / len(met) if met else None


class Client:
    """Talks to one server. `baseline` is the server's, in s/token; targets that are multiples of it are resolved here too.

    Requests name their SLO class; the server must have been started with the workload's classes.
    """

    def __init__(self, base_url: str, model: str, baseline: float, clock: Clock) -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url,
            timeout=None,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )
        self._model = model
        self._baseline = baseline
        self._clock = clock

    async def close(self) -> None:
        """Close all connections, which cancels what is still running on them."""
        await self._http.aclose()

    async def ask(self, name: str, arrival: Arrival, due: float, deliver: Callable[[str], None] | None = None) -> Answer:
        """Send one request and take its answer in; `deliver` gets each piece of text. Never raises for what the server does."""
        take = _Take()
        finish, error, refused = None, None, False
        try:
            path, body = self._request(arrival)
            async with self._http.stream("POST", path, json=body) as response:
                if response.status_code == 200:
                    async for event in _events(response):
                        take.event(event, self._clock.now(), deliver)
                    finish, error = take.finish, take.error
                else:
                    error = _message(await response.aread())
                    refused = response.status_code in REFUSALS
        except (httpx.HTTPError, ValueError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        if error is not None and not refused:
            finish = FinishReason.ERROR
        return self._answer(name, arrival, due, take, finish, refused, error)

    def unfinished(self, name: str, arrival: Arrival, due: float) -> Answer:
        """The fate of a request that nobody waits for any longer."""
        return self._answer(name, arrival, due, _Take(), None, False, "not finished in time")

    def _request(self, arrival: Arrival) -> tuple[str, dict[str, Any]]:
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
            return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": arrival.prompt}]}
        return "/v1/completions", {**body, "prompt": arrival.prompt}

    def _answer(
        self,
        name: str,
        arrival: Arrival,
        due: float,
        take: "_Take",
        finish: FinishReason | None,
        refused: bool,
        error: str | None,
    ) -> Answer:
        result = RequestResult(
            id=name,
            slo_class=arrival.class_name,
            targets=Targets() if arrival.slo is None else arrival.slo.resolve(self._baseline),
            arrived=due,
            first_token_at=take.first,
            last_token_at=take.last,
            ended=self._clock.now(),
            prompt_tokens=take.prompt_tokens,
            output_tokens=take.output_tokens,
            finish=finish,
            baseline=self._baseline,
            longest_gap=take.longest_gap,
        )
        return Answer(result, "".join(take.pieces), take.met, refused, error)


class _Take:
    """Takes in the events of one stream."""

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


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[6:])


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace") or "no reason given"


async def open_loop(
    client: Client, workload: Workload, clock: Clock, tally: Tally, stop: asyncio.Event, drain: float = DRAIN
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


async def _stopped_before(when: float, clock: Clock, stop: asyncio.Event) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), max(when - clock.now(), 0))
    return stop.is_set()
