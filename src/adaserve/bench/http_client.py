"""A streaming client for OpenAI-compatible servers: what it sends is its user's choice, how it measures is the same for all."""

from collections.abc import Callable, Mapping
from typing import Any

import httpx

from adaserve.bench.open_loop import REFUSALS, Answer, Take, events, reason
from adaserve.clock import Clock
from adaserve.metrics import RequestResult
from adaserve.request import FinishReason, Targets
from adaserve.workload import Arrival

Letter = tuple[str, dict[str, Any], Mapping[str, str]]
"""A request on its way: path, body, headers."""


class HttpClient:
    """Talks to one server. write: turns an arrival into what is sent. baseline: s/token, for targets that are multiples of it."""

    def __init__(
        self,
        base_url: str,
        write: Callable[[Arrival], Letter],
        baseline: float,
        clock: Clock,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.http = httpx.AsyncClient(
            base_url=base_url,
            headers=headers,
            timeout=None,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )
        self._write = write
        self._baseline = baseline
        self._clock = clock

    async def close(self) -> None:
        """Close all connections, which cancels what is still running on them."""
        await self.http.aclose()

    async def ask(self, name: str, arrival: Arrival, due: float, deliver: Callable[[str], None] | None = None) -> Answer:
        """Send one request and take its answer in; `deliver` gets each piece of text. Never raises for what the server does."""
        take = Take()
        finish, error, refused = None, None, False
        try:
            path, body, headers = self._write(arrival)
            async with self.http.stream("POST", path, json=body, headers=headers) as response:
                if response.status_code == 200:
                    async for event in events(response.aiter_lines()):
                        take.event(event, self._clock.now(), deliver)
                    finish, error = take.finish, take.error
                else:
                    error = reason(await response.aread())
                    refused = response.status_code in REFUSALS
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        if error is not None and not refused:
            finish = FinishReason.ERROR
        return self._answer(name, arrival, due, take, finish, refused, error)

    def unfinished(self, name: str, arrival: Arrival, due: float) -> Answer:
        """The fate of a request that nobody waits for any longer."""
        return self._answer(name, arrival, due, Take(), None, False, "not finished in time")

    def _answer(
        self,
        name: str,
        arrival: Arrival,
        due: float,
        take: Take,
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
            output_tokens=take.output_tokens or len(take.pieces),  # a server that does not count sends a token at a time
            finish=finish,
            baseline=self._baseline,
            longest_gap=take.longest_gap,
        )
        return Answer(result, "".join(take.pieces), take.met, refused, error)
