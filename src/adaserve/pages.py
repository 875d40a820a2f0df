"""Page accounting and prefix reuse as pure Python: who owns which page, and what its keys and values stand for.

A page is in exactly one of three places:

    free      nobody holds it, its content means nothing      -> allocate() gives it out
    held      one or more requests hold a reference
    cached    nobody holds it, but its content is published   -> match() finds it, allocate() evicts the least recently used

What a full page's keys and values stand for is not only its own tokens but all tokens before them: a *prefix*. Prefixes are
interned as chains, `(parent prefix, tokens of this page)`, so two pages mean the same exactly if their prefixes are the same
object. Nothing is compared by hash alone, so collisions cannot mix two prompts, and a growing request never rehashes its past.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Match:
    """The longest cached run of full pages for a prompt.

    pages: in order of position.
    tokens: leading tokens whose target keys and values they hold; always fewer than the prompt has.
    draft_tokens: leading tokens of those whose draft keys and values are there too.
    """

    pages: tuple[int, ...]
    tokens: int
    draft_tokens: int


class _Prefix:
    """All tokens up to the end of one full page. Known as long as a page or a longer prefix needs it."""

    __slots__ = ("needed", "page", "parent", "tokens")

    def __init__(self, parent: "_Prefix | str", tokens: tuple[int, ...]) -> None:
        self.parent = parent  # the salt, for a first page
        self.tokens = tokens  # of its last page
        self.page: int | None = None  # where match() finds it, when it is published
        self.needed = 0  # by so many pages and longer prefixes


class PagePool:
    """Counts references to `pages` pages of `page_size` tokens, and remembers what released pages hold.

    Every call costs time in proportion to the pages that it names or creates, not to the pool or the prompt's past.
    Raises ValueError for calls that break the accounting: acquiring a free page, releasing one that nobody holds.
    """

    def __init__(self, pages: int, page_size: int) -> None:
        if pages < 1 or page_size < 1:
            raise ValueError(f"a pool needs at least one page of one token, got {pages} pages of {page_size}")
        self.pages = pages
        self.page_size = page_size
        self._references = [0] * pages
        self._prefix: list[_Prefix | None] = [None] * pages
        self._draft_valid = [False] * pages
        self._free = list(range(pages - 1, -1, -1))  # a stack
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._known: dict[tuple[_Prefix | str, tuple[int, ...]], _Prefix] = {}

    @property
    def free(self) -> int:
        """How many pages `allocate` could give out now, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def cached(self) -> int:
        """How many pages nobody holds although their content may still be matched."""
        return len(self._cached)

    @property
    def used(self) -> int:
        """How many pages are held by somebody."""
        return self.pages - self.free

    @property
    def usage(self) -> float:
        """The share of the pool that is held, 0 to 1; cached pages count as free."""
        return self.used / self.pages

    def match(self, tokens: Sequence[int], salt: str = "") -> Match:
        """Find the longest published run of full pages that `tokens` begin with.

        The last token is never matched: its row must be computed, for the next token is drawn from it. Prefixes under different
        salts never meet. Takes no references: `acquire` the pages before the next `allocate`, which might evict them.
        """
        size = self.page_size
        pages: list[int] = []
        draft_pages = 0
        parent: _Prefix | str = salt
        for start in range(0, len(tokens) - size, size):
            prefix = self._known.get((parent, tuple(tokens[start : start + size])))
            if prefix is None or prefix.page is None:
                break
            if draft_pages == len(pages) and self._draft_valid[prefix.page]:
                draft_pages += 1
            pages.append(prefix.page)
            parent = prefix
        return Match(tuple(pages), len(pages) * size, draft_pages * size)

    def acquire(self, pages: Iterable[int]) -> None:
        """Take a reference to each of these pages, which a match named."""
        for page in pages:
            if self._references[page] == 0:
                if page not in self._cached:
                    raise ValueError(f"page {page} is free: only allocate() gives it out")
                del self._cached[page]
            self._references[page] += 1

    def allocate(self, count: int) -> list[int] | None:
        """Give out `count` pages with one reference each, evicting cached ones as needed.

        None, and no change, if there are too few.
        """
        if count > self.free:
            return None
        pages = []
        for _ in range(count):
            page = self._free.pop() if self._free else self._evict()
            self._references[page] = 1
            pages.append(page)
        return pages

    def release(self, pages: Sequence[int]) -> None:
        """Give back one reference to each page, named in order of position.

        The last page of a prefix becomes evictable before its first, because a prefix without its beginning matches nothing.
        """
        for page in reversed(pages):
            if self._references[page] == 0:
                raise ValueError(f"page {page} was released more often than acquired")
            self._references[page] -= 1
            if self._references[page] == 0:
                self._retire(page)

    def publish(self, pages: Sequence[int], tokens: Sequence[int], salt: str, computed: int, draft_computed: int = 0) -> None:
        """Let later requests reuse the full pages of a request; may be called after every step.

        pages, tokens: all that the request holds and knows, in order of position.
        computed: how many leading tokens have the target's keys and values in the pages. It may exceed `tokens`, when a stop cut
        accepted tokens off; what is not known is not published.
        draft_computed: how many have the draft's there too. It may lag (d = 0 periods) and be caught up by a later call.
        Of two pages with the same content the first published stays the one that matches.
        """
        size = self.page_size
        full = min(computed, len(tokens)) // size
        first = full
        while first > 0 and self._prefix[pages[first - 1]] is None:
            first -= 1
        for index in range(first, full):
            parent = salt if index == 0 else self._prefix[pages[index - 1]]
            assert parent is not None  # the loop above stopped behind a page with a prefix
            self._name(pages[index], parent, tuple(tokens[index * size : (index + 1) * size]))
        index = min(full, draft_computed // size)
        while index > 0 and not self._draft_valid[pages[index - 1]]:
            index -= 1
            self._draft_valid[pages[index]] = True

    def check(self, holders: Iterable[Sequence[int]] = ()) -> None:
        """Raise AssertionError unless the books are right and exactly these holders hold pages; none when idle."""
        held = [0] * self.pages
        for pages in holders:
            for page in pages:
                held[page] += 1
        if held != self._references:
            wrong = {p: (a, b) for p, (a, b) in enumerate(zip(self._references, held, strict=True)) if a != b}
            raise AssertionError(f"pages whose references differ from their holders (references, holders): {wrong}")
        places = sorted([*self._free, *self._cached, *(p for p, count in enumerate(held) if count)])
        if places != list(range(self.pages)):
            raise AssertionError("some page is in two places, or in none")
        for page in self._free:
            if self._prefix[page] is not None or self._draft_valid[page]:
                raise AssertionError(f"free page {page} still has content")
        for page in self._cached:
            prefix = self._prefix[page]
            if prefix is None or prefix.page != page:
                raise AssertionError(f"cached page {page} cannot be matched")
        needed = Counter(
            [*filter(None, self._prefix), *[p.parent for p in self._known.values() if isinstance(p.parent, _Prefix)]]
        )
        for prefix in self._known.values():
            if prefix.page is not None and self._prefix[prefix.page] is not prefix:
                raise AssertionError(f"a prefix names page {prefix.page}, which holds something else")
            if not 0 < prefix.needed == needed[prefix]:
                raise AssertionError(f"a prefix counts {prefix.needed} that need it, and {needed[prefix]} do")

    def _name(self, page: int, parent: "_Prefix | str", tokens: tuple[int, ...]) -> None:
        if self._references[page] == 0:
            raise ValueError(f"page {page} is published but nobody holds it")
        prefix = self._known.get((parent, tokens))
        if prefix is None:
            prefix = self._known[parent, tokens] = _Prefix(parent, tokens)
            if isinstance(parent, _Prefix):
                parent.needed += 1
        if prefix.page is None:
            prefix.page = page
        prefix.needed += 1
        self._prefix[page] = prefix

    def _retire(self, page: int) -> None:
        """Nobody holds the page any more: cache it if it is the one that matches its prefix, else free it."""
        prefix = self._prefix[page]
        if prefix is not None and prefix.page is None:
            prefix.page = page  # its twin, published first, was evicted meanwhile
        if prefix is not None and prefix.page == page:
            self._cached[page] = None
        else:
            self._clear(page)
            self._free.append(page)

    def _evict(self) -> int:
        page, _ = self._cached.popitem(last=False)
        prefix = self._prefix[page]
        assert prefix is not None
        prefix.page = None
        self._clear(page)
        return page

    def _clear(self, page: int) -> None:
        """Forget what a page holds, and the prefixes that nothing needs any more."""
        prefix: _Prefix | str | None = self._prefix[page]
        self._prefix[page] = None
        self._draft_valid[page] = False
        while isinstance(prefix, _Prefix):
            prefix.needed -= 1
            if prefix.needed:
                break
            del self._known[prefix.parent, prefix.tokens]
            prefix = prefix.parent
