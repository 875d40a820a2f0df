"""Plays workloads against any OpenAI-compatible server: peers are measured by the same client, in the same way, as AdaServe.

What is sent: a streamed text completion (or chat, where a workload is of messages) with `ignore_eos` and `stream_options` where
the server takes them, targets in headers, which servers that do not know them ignore. What is measured: deliveries.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import httpx

from adaserve.bench.http_client import HttpClient, Letter
from adaserve.bench.open_loop import Answer, Tally, open_loop, reason
from adaserve.bench.replay import Progress, Replay, ReplayFailed
from adaserve.clock import Clock
from adaserve.errors import EngineFailed, InvalidConfig
from adaserve.request import Targets
from adaserve.workload import Arrival, Workload
from adaserve.workload.prompts import prompts

PROBE_TOKENS = 64
PROBES = 4
TICK = 0.25
PING_LIMIT = 10.0
NOT_READY = 503


@dataclass(frozen=True)
class Peer:
    """A server: where it is, which of its models is meant, which options it takes, and the headers that every call has."""

    url: str
    model: str
    headers: Mapping[str, str]
    takes_ignore_eos: bool = True
    takes_stream_options: bool = True

    def letter(self, arrival: Arrival, targets: Targets, temperature: float, seed: int) -> Letter:
        """What is sent for a request."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": arrival.max_tokens,
            "temperature": temperature,
            "seed": seed,
            "stream": True,
        }
        if self.takes_stream_options:
            body["stream_options"] = {"include_usage": True}
        if arrival.ignore_eos and self.takes_ignore_eos:
            body["ignore_eos"] = True
        wanted = {"x-slo-tpot-ms": targets.tpot, "x-slo-ttft-ms": targets.ttft}
        headers = {name: f"{seconds * 1e3:.6g}" for name, seconds in wanted.items() if seconds is not None}
        if arrival.chat:
            return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": arrival.prompt}]}, headers
        return "/v1/completions", {**body, "prompt": arrival.prompt}, headers


def connect(url: str, model: str | None, key: str | None, clock: Clock) -> Peer:
    """Find out what a server serves and which options it takes. Raises InvalidConfig when it does not answer as it should."""
    return asyncio.run(_connect(url.rstrip("/").removesuffix("/v1"), model, key, clock))


def measure_baseline(peer: Peer, clock: Clock) -> float:
    """TPOT in seconds of one request alone, at delivery; the median of some. Raises InvalidConfig when they fail.

    It is the baseline of relative targets if the server does not speculate; for one that does, state that of one that does not.
    """
    return asyncio.run(_baseline(peer, clock))


class UrlRunner:
    """A Runner on a server. The policy's name is a label: what the server does is its own affair.

    baseline: seconds per token. stop, drain: as in `replay`. When the server is gone in the middle, raises ReplayFailed with all
    that was measured.
    """

    def __init__(
        self,
        peer: Peer,
        baseline: float,
        clock: Clock,
        *,
        temperature: float,
        seed: int,
        stop: Callable[[], bool],
        drain: float,
    ) -> None:
        self._peer = peer
        self._baseline = baseline
        self._clock = clock
        self._temperature = temperature
        self._seed = seed
        self._stop = stop
        self._drain = drain

    def __call__(self, policy: str, workload: Workload, on_progress: Callable[[Progress], None]) -> Replay:
        """Play a workload."""
        return asyncio.run(self._play(workload, on_progress))

    async def _play(self, workload: Workload, on_progress: Callable[[Progress], None]) -> Replay:
        def write(arrival: Arrival) -> Letter:
            targets = Targets() if arrival.slo is None else arrival.slo.resolve(self._baseline)
            return self._peer.letter(arrival, targets, self._temperature, self._seed)

        client = _Remembering(self._peer.url, write, self._baseline, self._clock, self._peer.headers)
        tally, halt = Tally(), asyncio.Event()
        start = self._clock.now()
        try:
            run = asyncio.create_task(open_loop(client, workload, self._clock, tally, halt, self._drain))
            gone = False
            while not run.done():
                await asyncio.wait({run}, timeout=TICK)
                gone = gone or (bool(tally.answers) and _broke(tally.answers[-1]) and not await _alive(client.http))
                if gone or self._stop():
                    halt.set()
                judged = tally.judged
                on_progress(
                    Progress(self._clock.now() - start, tally.sent, tally.in_flight, len(tally.answers), sum(judged), len(judged))
                )
            run.result()
        finally:
            await client.close()
        played = self._replay(client, tally, start, halt.is_set())
        if gone:
            raise ReplayFailed(played) from EngineFailed(f"{self._peer.url} does not answer any more")
        return played

    def _replay(self, client: "_Remembering", tally: Tally, start: float, stopped: bool) -> Replay:
        answered = {answer.result.id for answer in tally.answers}
        cut = [client.unfinished(*sent) for sent in client.sent if sent[0] not in answered]
        answers = [*tally.answers, *cut]
        seconds = self._clock.now() - start
        busy = sum(answer.result.ended - answer.result.arrived for answer in answers)
        return Replay(
            results=tuple(answer.result for answer in answers if not answer.refused),
            totals=None,
            mean_running=busy / seconds if seconds > 0 else 0.0,
            seconds=seconds,
            refused=tuple(answer.result for answer in answers if answer.refused),
            stopped=stopped,
        )


class _Remembering(HttpClient):
    """Knows what it was asked to send, so that nothing that arrived is forgotten when a run is cut short."""

    sent: list[tuple[str, Arrival, float]]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sent = []

    async def ask(self, name: str, arrival: Arrival, due: float, deliver: Callable[[str], None] | None = None) -> Answer:
        self.sent.append((name, arrival, due))
        return await super().ask(name, arrival, due, deliver)


def _broke(answer: Answer) -> bool:
    """Whether the server may be gone: a failure that is not an answer of its own."""
    return answer.error is not None and not answer.refused


async def _alive(http: httpx.AsyncClient) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        await http.get("/v1/models", timeout=PING_LIMIT)
        return True
    return False


async def _connect(url: str, model: str | None, key: str | None, clock: Clock) -> Peer:
    if not url.startswith(("http://", "https://")):
        raise InvalidConfig(f"--base-url must begin with http:// or https://, got {url!r}")
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=PING_LIMIT, trust_env=False) as http:
            response = await http.get("/v1/models")
            if response.status_code == NOT_READY:
                raise InvalidConfig(f"the server at {url} is not ready, it may still be loading: try again in a moment")
            if response.status_code != 200:
                raise ValueError(f"/v1/models answers {response.status_code}: {reason(response.content)}")
            served = [str(item["id"]) for item in response.json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise InvalidConfig(f"no OpenAI-compatible server at {url}: {error or type(error).__name__}") from None
    if model is not None and model not in served:
        raise InvalidConfig(f"{url} does not serve {model!r}; it serves {', '.join(served)}: choose with --model")
    if not served:
        raise InvalidConfig(f"{url} serves no model")
    peer = Peer(url, model or served[0], headers)
    candidates = [replace(peer, takes_ignore_eos=a, takes_stream_options=b) for b in (True, False) for a in (True, False)]
    answer = None
    for candidate in candidates:
        answer = await _ask_alone(candidate, 2, clock)
        if answer.error is None:
            return candidate
    assert answer is not None
    raise InvalidConfig(f"{url} does not complete a text with {peer.model!r}: {answer.error}")


async def _baseline(peer: Peer, clock: Clock) -> float:
    found = []
    for _ in range(PROBES):
        answer = await _ask_alone(peer, PROBE_TOKENS, clock)
        if answer.error is not None or not answer.result.tpot:
            raise InvalidConfig(
                f"cannot measure the baseline at {peer.url}: {answer.error or 'no tokens came'}; give --baseline-ms"
            )
        found.append(answer.result.tpot)
    return median(found[1:])


async def _ask_alone(peer: Peer, tokens: int, clock: Clock) -> Answer:
    def write(arrival: Arrival) -> Letter:
        return peer.letter(arrival, Targets(), 0.0, 0)

    client = HttpClient(peer.url, write, 0.0, clock, peer.headers)
    try:
        arrival = Arrival(0.0, prompts("coding")[0], "probe", None, tokens, ignore_eos=True)
        return await client.ask("probe", arrival, clock.now())
    finally:
        await client.close()
