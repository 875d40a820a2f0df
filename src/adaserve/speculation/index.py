"""The n-grams of one text, and where each was last continued: what a request's own tokens propose to follow them."""

from collections.abc import Sequence
from dataclasses import dataclass

Gram = tuple[int, ...]


@dataclass(frozen=True)
class Continuation:
    """What may follow, and the size of the n-gram that it followed before; 0 where nothing was found."""

    tokens: list[int]
    size: int


class NgramIndex:
    """The known tokens of one request, and where each of its n-grams was last continued. O(1) per token and n-gram size."""

    def __init__(self, shortest: int, longest: int) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self.known: list[int] = []
        self._next: dict[Gram, int] = {}  # n-gram -> index of the token that followed its latest occurrence

    def append(self, tokens: Sequence[int]) -> None:
        """Take in tokens that have become known."""
        first = len(self.known)
        self.known += tokens
        for size in self._sizes:
            # An n-gram counts once something follows it, so a look-up never finds the suffix itself: zip drops the last one.
            start = max(first - size, 0)
            window = self.known[start:]
            grams = zip(*(window[offset:] for offset in range(size)), strict=False)
            self._next.update(zip(grams, range(start + size, len(self.known)), strict=False))

    def continuation(self, length: int) -> Continuation:
        """Propose `length` tokens to follow the known ones; none when no suffix of an allowed size occurred before.

        The longest such suffix decides, at its latest occurrence. Where the copy runs into the end of the known tokens, it goes
        on with what it has proposed itself: a loop keeps looping.
        """
        known = self.known
        for size in self._sizes:
            start = self._next.get(tuple(known[-size:])) if size <= len(known) else None
            if start is not None:
                period = len(known) - start
                return Continuation([known[start + step % period] for step in range(length)], size)
        return Continuation([], 0)
