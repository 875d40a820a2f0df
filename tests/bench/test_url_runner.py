"""The URL runner against a small server of raw sockets that plays a scripted peer; the real server is in cli/test_bench.py."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from adaserve.bench.replay import Progress, Replay, ReplayFailed
from adaserve.bench.url_runner import Peer, UrlRunner, connect, measure_baseline
from adaserve.clock import WallClock
from adaserve.errors import EngineFailed, InvalidConfig
from adaserve.request import SLO, FinishReason
from adaserve.workload import Arrival, Workload

CLOCK = WallClock()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@dataclass
class Scripted:
    """A peer. refuses: a field that it answers with 400. usage: whether it counts tokens. dies: after so many completions.

    status: of its answer to what it serves.
    """

    refuses: str = ""
    usage: bool = True
    gap: float = 0.01
    dies: int = 10**9
    status: int = 200
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    url: str = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if len(self.bodies) >= self.dies:
                writer.transport.abort()
            elif head.startswith("get"):
                self._whole(writer, self.status, {"data": [{"id": "small"}, {"id": "large"}]})
            else:
                length = int(head.partition("content-length:")[2].split()[0])
                body = json.loads(await reader.readexactly(length))
                self.bodies.append(body)
                self.heads.append(head)
                if self.refuses in body:
                    self._whole(writer, 400, {"error": {"message": f"unknown field {self.refuses}"}})
                else:
                    await self._stream(writer, body)
        writer.close()

    def _whole(self, writer: asyncio.StreamWriter, status: int, reply: object) -> None:
        data = json.dumps(reply).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)

    async def _stream(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        writer.write(HEAD)
        for number in range(min(body["max_tokens"], 5)):
            finish = "length" if number == min(body["max_tokens"], 5) - 1 else None
            choice = {"index": 0, "text": " word", "finish_reason": finish}
            writer.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
            await writer.drain()
            await asyncio.sleep(self.gap)
        if self.usage and "stream_options" in body:
            counted = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": min(body["max_tokens"], 5)}}
            writer.write(f"data: {json.dumps(counted)}\n\ndata: [DONE]\n\n".encode())
        await writer.drain()


@contextlib.contextmanager
def serving(peer: Scripted) -> Iterator[Scripted]:
    """The peer on a thread of its own, for the runner has an event loop of its own."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(peer.answer, "127.0.0.1", 0))
    peer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield peer
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


def workload(count: int, gap: float, slo: SLO | None = SLO(tpot_multiple=2.0)) -> Workload:  # noqa: B008
    return Workload(tuple(Arrival(gap * n, f"prompt {n}", "coding", slo, 5, ignore_eos=True) for n in range(count)))


def play(peer: Scripted, requests: Workload, stop: Callable[[], bool] = lambda: False, baseline: float = 10.0) -> Replay:
    found = connect(peer.url, None, "sesame", CLOCK)
    peer.bodies.clear()
    peer.heads.clear()
    runner = UrlRunner(found, baseline, CLOCK, temperature=0.0, seed=7, stop=stop, drain=5.0)
    return runner("peer", requests, lambda progress: None)


def test_what_is_sent_and_what_is_measured() -> None:
    with serving(Scripted()) as peer:
        played = play(peer, workload(6, 0.02))
    assert {body["prompt"] for body in peer.bodies} == {f"prompt {n}" for n in range(6)}
    for body, head in zip(peer.bodies, peer.heads, strict=True):
        assert (body["model"], body["max_tokens"], body["ignore_eos"], body["stream"], body["seed"]) == (
            "small",
            5,
            True,
            True,
            7,
        )
        assert (
            "x-slo-tpot-ms: 20000" in head and "authorization: bearer sesame" in head and head.startswith("post /v1/completions")
        )
    assert len(played.results) == 6 and all(r.completed and r.attained and r.output_tokens == 5 for r in played.results)
    assert all(0.005 < r.tpot < 1 for r in played.results if r.tpot is not None)
    assert played.totals is None and not played.stopped and played.refused == () and played.mean_running > 0


@pytest.mark.parametrize("field", ["ignore_eos", "stream_options"])
def test_a_peer_that_does_not_take_an_option_is_asked_without_it(field: str) -> None:
    with serving(Scripted(refuses=field)) as peer:
        played = play(peer, workload(2, 0.0))
    assert all(field not in body for body in peer.bodies)
    assert [r.output_tokens for r in played.results] == [5, 5]  # counted by deliveries where the peer does not count


def test_the_baseline_is_measured_at_delivery() -> None:
    with serving(Scripted(gap=0.02)) as peer:
        assert 0.015 < measure_baseline(Peer(peer.url, "small", {}), CLOCK) < 0.2


def test_a_server_that_dies_keeps_what_was_measured() -> None:
    with serving(Scripted(dies=5)) as peer, pytest.raises(ReplayFailed) as caught:
        play(peer, workload(100, 0.05))
    played = caught.value.played
    assert isinstance(caught.value.__cause__, EngineFailed)
    assert sum(r.completed for r in played.results) in (4, 5)
    assert 5 < len(played.results) < 100 and played.stopped
    assert all(r.attained is False for r in played.results if not r.completed)


def test_stopping_counts_what_had_arrived_as_unfinished() -> None:
    with serving(Scripted(gap=0.5)) as peer:
        found = connect(peer.url, "large", None, CLOCK)
        sent: list[Progress] = []
        runner = UrlRunner(
            found, 10.0, CLOCK, temperature=0.0, seed=7, stop=lambda: bool(sent) and sent[-1].arrived >= 3, drain=5.0
        )
        played = runner("peer", workload(1000, 0.05), sent.append)
    assert played.stopped and 3 <= len(played.results) < 1000
    assert all(r.finish is None and r.attained is False for r in played.results)


def test_a_refusal_is_a_refusal() -> None:
    class Full(Scripted):
        async def _stream(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
            if len(self.bodies) % 2 == 0:
                self._whole(writer, 429, {"error": {"message": "full"}})
            else:
                await super()._stream(writer, body)

    with serving(Full()) as peer:
        played = play(peer, workload(4, 0.2))
    assert (len(played.results), len(played.refused)) == (2, 2)
    assert all(r.attained is False and r.finish is None for r in played.refused)
    assert all(r.finish is FinishReason.LENGTH for r in played.results)


def test_nobody_there_and_a_model_that_is_not() -> None:
    with pytest.raises(InvalidConfig, match="must begin with http"):
        connect("localhost:9", None, None, CLOCK)
    with pytest.raises(InvalidConfig, match="no OpenAI-compatible server at http://127.0.0.1:9"):
        connect("http://127.0.0.1:9/v1/", None, None, CLOCK)
    with serving(Scripted()) as peer, pytest.raises(InvalidConfig, match="does not serve 'huge'; it serves small, large"):
        connect(peer.url, "huge", None, CLOCK)
    with (
        serving(Scripted(refuses="prompt")) as peer,
        pytest.raises(InvalidConfig, match="does not complete a text.*unknown field"),
    ):
        connect(peer.url, None, None, CLOCK)


@pytest.mark.parametrize(("status", "words"), [(503, "is not ready, it may still be loading"), (401, "/v1/models answers 401")])
def test_a_server_that_does_not_say_what_it_serves(status: int, words: str) -> None:
    with serving(Scripted(status=status)) as peer, pytest.raises(InvalidConfig, match=words):
        connect(peer.url, None, None, CLOCK)
