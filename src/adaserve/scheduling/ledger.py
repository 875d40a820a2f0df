"""PageLedger: which pages each request holds, in the scheduler's terms."""

from collections.abc import Sequence

from adaserve.pages import PagePool
from adaserve.request import RequestState
from adaserve.step import PageGrant


class PageLedger:
    """Gives requests pages for their known tokens and takes them back; offers full pages for reuse if `reuse` says so.

    What a step filled may be offered when there is time for it (`note`, then `publish`): whoever looks for pages, or gives back
    his own, sees to it first that all of it is.
    """

    def __init__(self, pool: PagePool, reuse: bool) -> None:
        self._pool = pool
        self._reuse = reuse
        self._noted: list[RequestState] = []  # may have filled pages that are not offered yet

    @property
    def usage(self) -> float:
        """Share of the pages held, 0 to 1."""
        return self._pool.usage

    def open(self, state: RequestState, reach: int, reserve: int) -> bool:
        """Give a request pages for `reach` tokens, reusing cached prefixes; false if they do not fit.

        `reserve` pages stay untouched, so that running requests can grow before the newcomer has to leave again.
        """
        needed = self._pages_for(reach)
        matched: tuple[int, ...] = ()
        computed = draft_computed = 0
        if self._reuse:
            self.publish()
            match = self._pool.match(state.tokens, state.request.cache_salt)
            matched, computed, draft_computed = match.pages, match.tokens, match.draft_tokens
        self._pool.acquire(matched)
        fresh = needed - len(matched)
        granted = self._pool.allocate(fresh) if fresh + reserve <= self._pool.free else None
        if granted is None:
            self._pool.release(matched)
            return False
        state.pages = [*matched, *granted]
        state.computed, state.draft_computed = computed, draft_computed
        state.cached_tokens = max(state.cached_tokens, computed) if state.preemptions == 0 else state.cached_tokens
        return True

    def short(self, states: Sequence[RequestState], more: int) -> list[RequestState]:
        """Which of these hold no pages for so many tokens beyond those they know."""
        size = self._pool.page_size
        return [s for s in states if len(s.pages) * size < len(s.tokens) + more]

    def holds(self, state: RequestState, reach: int) -> bool:
        """Whether a running request has pages for `reach` tokens already."""
        return len(state.pages) * self._pool.page_size >= reach

    def grow(self, state: RequestState, reach: int) -> PageGrant | None:
        """Give a running request the pages that it lacks for `reach` tokens; None if there are not enough left."""
        assert state.slot is not None
        fresh = self._pool.allocate(self._pages_for(reach) - len(state.pages))
        if fresh is None:
            return None
        grant = PageGrant(state.slot, len(state.pages), tuple(fresh))
        state.pages += fresh
        return grant

    def note(self, states: list[RequestState]) -> None:
        """Remember that a step computed tokens of these requests, which hold their pages still."""
        if self._reuse:
            self._noted += states

    def publish(self) -> None:
        """Offer the full pages of all who were noted to later requests, in the order in which they were."""
        noted, self._noted = self._noted, []
        for state in noted:
            self._pool.publish(state.pages, state.tokens, state.request.cache_salt, state.computed, state.draft_computed)

    def close(self, state: RequestState, publish: bool) -> None:
        """Take back everything; what is published stays cached until its page is needed. publish: what is not yet, too."""
        if publish:
            self.note([state])
        self.publish()
        self._pool.release(state.pages)
        state.pages = []

    def check(self, states: list[RequestState]) -> None:
        """Raise AssertionError unless exactly these requests hold pages."""
        self._pool.check([s.pages for s in states])

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self._pool.page_size)
