"""The HTTP process's end of the engine: streams are bounded, and a wrong start is told as one."""

import asyncio

import pytest

from adaserve.config import EngineConfig
from adaserve.errors import EngineFailed
from adaserve.request import FinishReason
from adaserve.server.engine_link import EngineLink, EngineState, WrongStart
from adaserve.server.messages import TokenNews
from adaserve.server.monitor import Monitor
from adaserve.server.streams import SlowReader, Stream


def test_a_stream_hands_out_all_there_is_in_order() -> None:
    async def run() -> None:
        stream = Stream(("a", "b"), max_pending=10)
        assert stream.push(1.0, TokenNews("a", (1, 2)))
        assert stream.push(2.0, TokenNews("b", (3,), finish=FinishReason.STOP))
        assert [news.id for _, news in await stream.take()] == ["a", "b"]
        assert stream.open_ids == {"a"}
        waiting = asyncio.create_task(stream.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        stream.push(3.0, TokenNews("a", (4,), finish=FinishReason.LENGTH))
        assert (await waiting)[0][0] == 3.0
        with pytest.raises(EngineFailed):
            await stream.take()

    asyncio.run(run())


def test_a_stream_nobody_reads_breaks_and_says_so() -> None:
    async def run() -> None:
        stream = Stream(("a",), max_pending=10)
        assert all(stream.push(1.0, TokenNews("a", (1, 2))) for _ in range(5))
        assert not stream.push(1.0, TokenNews("a", (1,)))
        await asyncio.wait_for(stream.broken(), 1)
        with pytest.raises(SlowReader):
            await stream.take()
        assert stream.push(2.0, TokenNews("a", (1,))), "what comes after is dropped"
        stream.fail(EngineFailed("later"))
        assert isinstance(stream.failure, SlowReader), "the first failure counts"

    asyncio.run(run())


def test_a_reader_that_keeps_up_may_read_for_ever() -> None:
    async def run() -> None:
        stream = Stream(("a",), max_pending=4)
        for _ in range(100):
            assert stream.push(1.0, TokenNews("a", (1, 2, 3)))
            assert len(await stream.take()) == 1

    asyncio.run(run())


def test_a_wrong_start_is_told_in_one_line() -> None:
    async def run() -> None:
        link = EngineLink(EngineConfig(model="/no/such/model"), lambda line: None, Monitor("m"))
        await link.start()
        try:
            with pytest.raises(WrongStart, match="/no/such/model") as caught:
                await asyncio.wait_for(link.ready(), 60)
            assert "\n" not in str(caught.value)
            assert link.state is EngineState.FAILED
            with pytest.raises(WrongStart):
                link.submit([], 10)
        finally:
            await link.stop()

    asyncio.run(run())
