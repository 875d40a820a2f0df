"""What a tenant's texts said: look-up over the prompts and outputs of its earlier and concurrent requests.

A tenant is everybody whose requests carry the same cache salt, as for the reuse of prefixes. Each has a memory of its own, and
nothing that is in one is ever found from another.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

from adaserve.speculation.index import Continuation

_BITS = 32
"""Of a place: the token's index in its text; above them, which text of the half."""
_INDEX = (1 << _BITS) - 1


class _Half:
    """Texts, and for each size of n-gram where each n-gram was last continued in them.

    An n-gram is known by its hash, a third of its bytes: where two should ever share one, a draft is wrong, and no token.
    """

    def __init__(self, sizes: range) -> None:
        self.size = 0  # tokens of all texts
        self.texts: list[list[int]] = []
        self.next: dict[int, dict[int, int]] = {size: {} for size in sizes}  # size -> n-gram -> place of the token after it


class TextMemory:
    """The latest texts of one tenant, `tokens` of them at most, in order of arrival whichever text they belong to.

    They are kept in two halves. When the younger is full it becomes the older, and the older is forgotten whole, so there are
    between half as many and all of them, and forgetting costs nothing that adding did not: O(1) per token and n-gram size.
    Requests write at once, each to a text of its own; `writer` says which.
    """

    def __init__(self, tokens: int, sizes: range) -> None:
        self._sizes = sizes[::-1]  # the longest first
        self._room = tokens // 2
        self._young, self._old = _Half(sizes), _Half(sizes)
        self._text_of: dict[int, int] = {}  # writer -> its text in the younger half
        self._tail: dict[int, list[int]] = {}  # writer -> its latest tokens, whose n-grams the next one continues

    @property
    def size(self) -> int:
        """How many tokens are remembered."""
        return self._young.size + self._old.size

    def append(self, writer: int, tokens: Sequence[int]) -> None:
        """Take in tokens that follow what this writer has told before, or begin a text."""
        rest = iter(tokens)
        while part := list(islice(rest, self._room - self._young.size or self._room)):
            if self._young.size == self._room:
                self._young, self._old = _Half(self._sizes[::-1]), self._young
                self._text_of.clear()
            self._write(writer, part)

    def end(self, writer: int) -> None:
        """The writer's text is complete; what it writes from now on is another."""
        self._text_of.pop(writer, None)
        self._tail.pop(writer, None)

    def continuation(self, known: Sequence[int], length: int, beyond: int) -> Continuation:
        """Propose up to `length` tokens to follow `known`, whose suffix of more than `beyond` tokens occurred in some text.

        The longest such suffix decides, at its latest occurrence. The copy ends where that text ends, or where its half does.
        """
        for size in self._sizes:
            if beyond < size <= len(known):
                gram = hash(tuple(known[-size:]))
                for half in (self._young, self._old):
                    place = half.next[size].get(gram)
                    if place is not None:
                        start = place & _INDEX
                        return Continuation(half.texts[place >> _BITS][start : start + length], size)
        return Continuation([], 0)

    def _write(self, writer: int, tokens: list[int]) -> None:
        """Add tokens for which the younger half has room."""
        half = self._young
        number = self._text_of.get(writer)
        if number is None:
            number = self._text_of[writer] = len(half.texts)
            half.texts.append([])
        text, before = half.texts[number], self._tail.get(writer, [])
        window = before + tokens
        for place, end in enumerate(range(len(before), len(window)), number << _BITS | len(text)):
            for size in self._sizes:
                if size <= end:
                    half.next[size][hash(tuple(window[end - size : end]))] = place
        text += tokens
        half.size += len(tokens)
        self._tail[writer] = window[-self._sizes[0] :]


class TenantMemories:
    """A TextMemory for each of the tenants that came last.

    tokens: that a tenant's memory holds at most. tenants: how many have one; who has not come for longest loses it.
    shortest, longest: sizes of the n-grams that are found, in tokens.
    """

    def __init__(self, tokens: int = 65_536, tenants: int = 64, shortest: int = 3, longest: int = 4) -> None:
        if tokens < 2 or tenants < 1:
            raise ValueError(f"a memory needs at least 2 tokens and 1 tenant, got {tokens} and {tenants}")
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-gram sizes must satisfy 1 <= shortest <= longest, got {shortest} and {longest}")
        self.longest = longest
        self._sizes = range(shortest, longest + 1)
        self._tokens = tokens
        self._most = tenants
        self._memories: OrderedDict[str, TextMemory] = OrderedDict()  # by salt, the one used last at the end

    def __len__(self) -> int:
        return len(self._memories)

    def of(self, salt: str) -> TextMemory:
        """The memory of the tenant with this salt, which counts as used."""
        if salt not in self._memories:
            self._memories[salt] = TextMemory(self._tokens, self._sizes)
            if len(self._memories) > self._most:
                self._memories.popitem(last=False)
        self._memories.move_to_end(salt)
        return self._memories[salt]

    def end(self, salt: str, writer: int) -> None:
        """A text of this tenant is complete; a tenant without a memory gets none for that."""
        if salt in self._memories:
            self._memories[salt].end(writer)

    def forget(self) -> None:
        """Drop all that is remembered."""
        self._memories.clear()
