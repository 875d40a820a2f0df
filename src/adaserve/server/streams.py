"""The news of the requests of one HTTP call, on their way from the engine to whoever answers the call."""

import asyncio
from collections import deque

from adaserve.errors import AdaServeError, EngineFailed
from adaserve.server.messages import TokenNews


class SlowReader(AdaServeError):
    """The client reads more slowly than its tokens come, and its buffer is full."""


class Stream:
    """A bounded buffer of news. The engine's side pushes and never waits; the call's side takes all there is at once.

    max_pending: tokens that may wait to be taken before the stream counts as unread.
    """

    def __init__(self, ids: tuple[str, ...], max_pending: int) -> None:
        self.ids = ids
        self._open = set(ids)
        self._max_pending = max_pending
        self._news: deque[tuple[float, TokenNews]] = deque()
        self._pending = 0
        self._failure: AdaServeError | None = None
        self._event = asyncio.Event()
        self._broken = asyncio.Event()

    @property
    def open_ids(self) -> frozenset[str]:
        """Requests whose end has not come yet."""
        return frozenset(self._open)

    @property
    def failure(self) -> AdaServeError | None:
        """Why the stream broke, if it did."""
        return self._failure

    def push(self, at: float, news: TokenNews) -> bool:
        """Add news committed at time `at`; returns False when the buffer is full, which breaks the stream."""
        if self._failure is not None:
            return True
        self._news.append((at, news))
        self._pending += max(1, len(news.tokens))
        if news.finish is not None:
            self._open.discard(news.id)
        self._event.set()
        if self._pending > self._max_pending:
            self.fail(SlowReader(f"the client left {self._pending} tokens unread"))
            return False
        return True

    def fail(self, failure: AdaServeError) -> None:
        """Break the stream: what waits is dropped, and whoever takes gets `failure`. The first failure counts."""
        if self._failure is None:
            self._failure = failure
            self._news.clear()
            self._event.set()
            self._broken.set()

    async def take(self) -> list[tuple[float, TokenNews]]:
        """Wait for news and return all there is, in order of time; raises the failure of a broken stream."""
        while not self._news and self._failure is None:
            if not self._open:
                raise EngineFailed("news awaited after the last request's end")
            self._event.clear()
            await self._event.wait()
        if self._failure is not None:
            raise self._failure
        taken = list(self._news)
        self._news.clear()
        self._pending = 0
        return taken

    async def broken(self) -> None:
        """Wait until the stream breaks."""
        await self._broken.wait()
