"""PagePool against a naive model that keeps whole prefixes as tuples, and against what was really written into each page."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adaserve.pages import PagePool

SIZE = 2
PAGES = 9
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=4 * SIZE + 1)
SALTS = st.sampled_from(["", "key"])


@dataclass
class Holder:
    """A request: what it knows, what it holds, how far its models got."""

    tokens: list[int]
    salt: str
    pages: list[int]
    computed: int
    draft_computed: int

    def content(self, index: int) -> tuple[str, tuple[int, ...]]:
        """What page `index` of this request stands for."""
        return self.salt, tuple(self.tokens[: (index + 1) * SIZE])


class PagesMachine(RuleBasedStateMachine):
    """Requests come, share, grow, compute, catch up and leave at random; the pool must agree with the naive books at every point.

    `content`, `draft` and `published` are the books. `written` and `draft_written` are the truth: which prefix each page's keys
    and values were last computed for, whatever the books say.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES, SIZE)
        self.holders: list[Holder] = []
        self.free = set(range(PAGES))
        self.cached: list[int] = []  # least recently used first
        self.content: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.draft: set[int] = set()
        self.published: dict[tuple[str, tuple[int, ...]], int] = {}
        self.written: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.draft_written: dict[int, tuple[str, tuple[int, ...]]] = {}

    # The naive books.

    def expected_match(self, tokens: list[int], salt: str) -> list[int]:
        pages = []
        while (len(pages) + 1) * SIZE < len(tokens):
            page = self.published.get((salt, tuple(tokens[: (len(pages) + 1) * SIZE])))
            if page is None:
                break
            pages.append(page)
        return pages

    def book_allocation(self, pages: list[int]) -> None:
        """Free pages go first, in any order; then the least recently used cached ones, in order."""
        evicted = [p for p in pages if p not in self.free]
        assert len(evicted) == 0 or self.free <= set(pages)
        assert evicted == self.cached[: len(evicted)]
        del self.cached[: len(evicted)]
        self.free -= set(pages)
        for page in evicted:
            del self.published[self.content.pop(page)]
            self.draft.discard(page)

    def allocate(self, count: int) -> list[int] | None:
        room = len(self.free) + len(self.cached)
        pages = self.pool.allocate(count)
        assert (pages is None) == (count > room)
        if pages is not None:
            assert len(set(pages)) == len(pages) == count
            self.book_allocation(pages)
        return pages

    def book_release(self, holder: Holder) -> None:
        self.holders.remove(holder)
        for page in reversed(holder.pages):
            if any(page in other.pages for other in self.holders):
                continue
            content = self.content.get(page)
            if content is not None and self.published.setdefault(content, page) == page:
                self.cached.append(page)
            else:
                self.content.pop(page, None)
                self.draft.discard(page)
                self.free.add(page)

    # What may happen.

    @rule(tokens=TOKENS, salt=SALTS)
    def admit(self, tokens: list[int], salt: str) -> None:
        match = self.pool.match(tokens, salt)
        assert list(match.pages) == self.expected_match(tokens, salt)
        assert match.tokens == len(match.pages) * SIZE < len(tokens)
        valid = [page in self.draft for page in match.pages]
        assert match.draft_tokens == SIZE * (valid.index(False) if False in valid else len(valid))
        for index, page in enumerate(match.pages):
            assert self.written[page] == (salt, tuple(tokens[: (index + 1) * SIZE]))
            if index * SIZE < match.draft_tokens:
                assert self.draft_written[page] == (salt, tuple(tokens[: (index + 1) * SIZE]))

        self.pool.acquire(match.pages)
        self.cached = [p for p in self.cached if p not in match.pages]
        holder = Holder(list(tokens), salt, list(match.pages), match.tokens, match.draft_tokens)
        self.holders.append(holder)
        fresh = self.allocate(-(-len(tokens) // SIZE) - len(match.pages))
        if fresh is None:
            self.pool.release(match.pages)
            self.book_release(holder)
        else:
            holder.pages += fresh

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), tokens=TOKENS)
    def grow(self, data: st.DataObject, tokens: list[int]) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        fresh = self.allocate(max(0, -(-(len(holder.tokens) + len(tokens)) // SIZE) - len(holder.pages)))
        if fresh is not None:
            holder.tokens += tokens
            holder.pages += fresh

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), rows=st.integers(0, 6), draft_rows=st.integers(0, 6))
    def compute(self, data: st.DataObject, rows: int, draft_rows: int) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        before = holder.computed // SIZE
        holder.computed = min(holder.computed + rows, len(holder.tokens))
        holder.draft_computed = min(holder.draft_computed + draft_rows, len(holder.tokens))
        for index in range(before, holder.computed // SIZE):
            page = holder.pages[index]
            self.written[page] = self.content[page] = holder.content(index)
            self.published.setdefault(holder.content(index), page)
        for index in range(holder.draft_computed // SIZE):
            self.draft_written[holder.pages[index]] = holder.content(index)
        for page in reversed(holder.pages[: min(holder.computed, holder.draft_computed) // SIZE]):
            if page in self.draft:
                break
            self.draft.add(page)
        self.pool.publish(holder.pages, holder.tokens, holder.salt, holder.computed, holder.draft_computed)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        self.pool.release(holder.pages)
        self.book_release(holder)

    @invariant()
    def agrees(self) -> None:
        self.pool.check([h.pages for h in self.holders])
        held = {page for h in self.holders for page in h.pages}
        assert self.pool.used == len(held) == PAGES - self.pool.free
        assert self.pool.free == len(self.free) + len(self.cached)
        assert self.pool.cached == len(self.cached)
        assert self.pool.usage == len(held) / PAGES

    def teardown(self) -> None:
        for holder in list(self.holders):
            self.pool.release(holder.pages)
        self.pool.check()
        assert self.pool.used == 0


TestPagesMachine = PagesMachine.TestCase
TestPagesMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def filled(pages: int, size: int, tokens: list[int], salt: str = "") -> tuple[PagePool, list[int]]:
    """A pool whose first holder has computed and published all of `tokens`."""
    pool = PagePool(pages, size)
    held = pool.allocate(-(-len(tokens) // size))
    assert held is not None
    pool.publish(held, tokens, salt, len(tokens), len(tokens))
    return pool, held


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=12), st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(1, 4)
)
def test_a_match_is_the_longest_common_run_of_full_pages(first: list[int], second: list[int], size: int) -> None:
    pool, _ = filled(20, size, first)
    common = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    assert pool.match(second).tokens == min(common // size, (len(second) - 1) // size) * size
    assert pool.match(second, "another salt").pages == ()


def test_equal_pages_behind_different_beginnings_differ() -> None:
    pool, held = filled(4, 2, [1, 1, 7, 7])
    assert pool.match([2, 2, 7, 7, 0]).pages == ()
    assert pool.match([7, 7, 0]).pages == ()
    assert pool.match([1, 1, 7, 7, 0]).pages == tuple(held)


def test_tokens_whose_hashes_collide_are_told_apart() -> None:
    assert hash((-1, 5)) == hash((-2, 5))  # Python's own collision
    pool, _ = filled(4, 2, [-1, 5])
    assert pool.match([-2, 5, 0]).pages == ()
    assert pool.match([-1, 5, 0]).tokens == 2


def test_the_end_of_a_prefix_is_evicted_before_its_beginning() -> None:
    pool, held = filled(4, 1, [1, 2, 3, 4])
    pool.release(held)
    assert pool.allocate(1) == held[-1:]
    assert pool.match([1, 2, 3, 4, 5]).pages == tuple(held[:3])


def test_a_twin_takes_over_when_the_first_is_evicted() -> None:
    pool, first = filled(2, 1, [1])
    twin = pool.allocate(1)
    assert twin is not None
    pool.publish(twin, [1], "", 1, 0)
    pool.release(first)
    assert pool.match([1, 1]).pages == tuple(first)
    assert pool.allocate(1) == first
    assert pool.match([1, 1]).pages == ()
    pool.release(twin)
    assert pool.match([1, 1]).pages == tuple(twin)


def test_the_draft_catches_up_on_shared_pages() -> None:
    pool = PagePool(4, 2)
    held = pool.allocate(3)
    assert held is not None
    tokens = [1, 2, 3, 4, 5, 6]
    pool.publish(held, tokens, "", 6, 3)
    assert pool.match([*tokens, 0]).draft_tokens == 2
    match = pool.match([*tokens, 0])
    pool.acquire(match.pages)
    pool.publish(match.pages, [*tokens, 0], "", 6, 6)
    assert pool.match([*tokens, 0]).draft_tokens == 6


def test_a_page_that_the_draft_skipped_ends_the_drafts_match() -> None:
    pool = PagePool(4, 1)
    first = pool.allocate(1)
    twin_and_next = pool.allocate(2)
    assert first is not None
    assert twin_and_next is not None
    pool.publish(first, [1], "", 1, 0)
    pool.publish(twin_and_next, [1, 2], "", 2, 2)  # its page of token 1 is not the one that matches
    match = pool.match([1, 2, 3])
    assert match.pages == (first[0], twin_and_next[1])
    assert (match.tokens, match.draft_tokens) == (2, 0)


def test_only_pages_of_known_tokens_are_published() -> None:
    pool = PagePool(4, 2)
    held = pool.allocate(3)
    assert held is not None
    pool.publish(held, [1, 2, 3], "", 6, 6)  # a stop cut three accepted tokens off
    pool.release(held)
    pool.check()
    assert pool.cached == 1
    assert pool.match([1, 2, 3, 4]).pages == tuple(held[:1])


def test_a_long_prefix_is_let_go_without_deep_recursion() -> None:
    tokens = list(range(50_000))
    pool, held = filled(60_000, 1, tokens)
    pool.release(held[:-1])
    assert pool.allocate(59_999) is not None  # only the last page of the chain is left
    pool.release(held[-1:])
    assert pool.allocate(1) == held[-1:]
    assert pool.match(tokens).pages == ()


def test_broken_accounting_is_refused_and_found() -> None:
    pool, held = filled(4, 1, [1, 2])
    with pytest.raises(ValueError, match="is free"):
        pool.acquire([next(p for p in range(4) if p not in held)])
    with pytest.raises(AssertionError, match="references"):
        pool.check()
    pool.check([held])
    pool.release(held)
    with pytest.raises(ValueError, match="more often"):
        pool.release(held)
    with pytest.raises(ValueError, match="nobody holds"):
        pool.publish([next(p for p in range(4) if p not in held)], [9], "", 1)
    with pytest.raises(AssertionError, match="references"):
        pool.check([held])
    pool.check()


@pytest.mark.parametrize(("pages", "size"), [(0, 1), (1, 0), (-1, 16)])
def test_a_pool_of_nothing_is_refused(pages: int, size: int) -> None:
    with pytest.raises(ValueError, match="at least one page"):
        PagePool(pages, size)
