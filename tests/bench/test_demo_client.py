"""The client against a small server of raw sockets that plays a scripted stream; the real server's turn is in test_demo.py."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from adaserve.bench.demo_client import Client, Tally, closed_loop, open_loop
from adaserve.clock import WallClock
from adaserve.errors import AdaServeError
from adaserve.request import SLO, FinishReason
from adaserve.workload import Arrival, Workload

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
SLOW, FAST = SLO(tpot_ms=10_000), SLO(tpot_ms=0.001)


def arrival(slo: SLO = SLOW, at: float = 0.0) -> Arrival:
    return Arrival(at, "Hello", "greeting", slo, 8, chat=True)


def piece(text: str, finish: str | None = None) -> bytes:
    event = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], "usage": None}
    return f"data: {json.dumps(event)}\n\n".encode()


def usage(tokens: int, met: bool | None = True) -> bytes:
    event = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}, "metrics": {"slo": {"met": met}}}
    return f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()


async def three_tokens(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    for text in ("one", " two", " three"):
        writer.write(piece(text))
        await writer.drain()
        await asyncio.sleep(0.05)
    writer.write(piece("", "length") + usage(3))


async def never_ends(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + piece("one"))
    await writer.drain()
    await asyncio.sleep(3600)


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Client]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            await reader.readexactly(length)
            await script(writer)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "model", 0.01, WallClock())
    try:
        yield client
    finally:
        await client.close()
        server.close()


def test_a_stream_is_timed_where_it_is_delivered() -> None:
    async def scene() -> None:
        async with serving(three_tokens) as client:
            pieces: list[str] = []
            clock = WallClock()
            answer = await client.ask("a", arrival(), clock.now(), pieces.append)
            assert pieces == ["one", " two", " three"]
            assert (answer.text, answer.met, answer.error) == ("one two three", True, None)
            result = answer.result
            assert (result.finish, result.output_tokens, result.prompt_tokens) == (FinishReason.LENGTH, 3, 5)
            assert result.tpot is not None and 0.04 < result.tpot < 1
            assert 0.04 < result.longest_gap < 1
            assert result.attained

    asyncio.run(scene())


def test_the_wait_before_sending_counts() -> None:
    async def scene() -> None:
        async with serving(three_tokens) as client:
            answer = await client.ask("a", arrival(), WallClock().now() - 5)
            assert answer.result.ttft is not None and answer.result.ttft > 5

    asyncio.run(scene())


def test_a_missed_target_is_a_missed_target() -> None:
    async def scene() -> None:
        async with serving(three_tokens) as client:
            assert (await client.ask("a", arrival(FAST), WallClock().now())).result.attained is False

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("reply", "refused", "error"),
    [
        (b'HTTP/1.1 503 No\r\nContent-Length: 36\r\n\r\n{"error": {"message": "come later"}}', True, "come later"),
        (b"HTTP/1.1 400 No\r\nContent-Length: 4\r\n\r\nwhat", False, "what"),
        (HEAD + piece("one") + b'data: {"error": {"message": "engine died"}}\n\n', False, "engine died"),
        (HEAD + b"data: {broken\n\n", False, "JSONDecodeError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\ndata: ", False, "RemoteProtocolError"),
    ],
)
def test_failures_are_answers_too(reply: bytes, refused: bool, error: str) -> None:
    async def scene() -> None:
        async def script(writer: asyncio.StreamWriter) -> None:
            writer.write(reply)

        async with serving(script) as client:
            answer = await client.ask("a", arrival(), WallClock().now())
            assert answer.error is not None and error in answer.error
            assert answer.refused == refused
            assert answer.result.finish is (None if refused else FinishReason.ERROR)
            assert answer.result.attained is False

    asyncio.run(scene())


def test_open_loop_does_not_wait_for_answers() -> None:
    async def scene() -> None:
        async with serving(three_tokens) as client:
            clock, tally = WallClock(), Tally()
            workload = Workload(tuple(arrival(at=0.01 * number) for number in range(10)))
            start = await open_loop(client, workload, clock, tally, asyncio.Event())
            assert tally.sent == len(tally.answers) == 10
            assert [answer.result.arrived - start for answer in sorted(tally.answers, key=lambda a: int(a.result.id))] == (
                pytest.approx([0.01 * number for number in range(10)])
            )
            assert clock.now() - start < 10 * 0.15  # one after another would take longer

    asyncio.run(scene())


def test_stopping_keeps_what_was_answered_and_leaves_out_the_rest() -> None:
    async def scene() -> None:
        async with serving(never_ends) as client:
            stop, tally = asyncio.Event(), Tally()
            asyncio.get_running_loop().call_later(0.1, stop.set)
            workload = Workload((arrival(), arrival(at=3600.0)))
            await asyncio.wait_for(open_loop(client, workload, WallClock(), tally, stop), 10)
            assert (tally.sent, tally.answers) == (0, [])

    asyncio.run(scene())


def test_what_is_not_answered_in_time_has_missed() -> None:
    async def scene() -> None:
        async with serving(never_ends) as client:
            tally = Tally()
            await open_loop(client, Workload((arrival(),)), WallClock(), tally, asyncio.Event(), drain=0.2)
            assert [answer.result.attained for answer in tally.answers] == [False]
            assert tally.in_flight == 0

    asyncio.run(scene())


def test_a_closed_loop_keeps_so_many_running() -> None:
    async def scene() -> None:
        together = most = 0

        async def script(writer: asyncio.StreamWriter) -> None:
            nonlocal together, most
            together += 1
            most = max(most, together)
            await three_tokens(writer)
            together -= 1

        async with serving(script) as client:
            rate = await closed_loop(client, [arrival()], 4, 1.0, WallClock())
            assert most == 4
            assert 4 / 0.15 / 4 < rate < 4 / 0.15  # four at a time, 0.15 s and some more each

    asyncio.run(scene())


def test_a_closed_loop_that_goes_nowhere_says_so() -> None:
    async def scene() -> None:
        async with serving(never_ends) as client:
            with pytest.raises(AdaServeError, match="only 0 requests ended within 0.3 s"):
                await closed_loop(client, [arrival()], 2, 0.1, WallClock(), limit=0.3)

    asyncio.run(scene())
