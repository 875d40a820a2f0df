"""Tokens to text, a step at a time: incremental detokenising, and stop strings that may straddle tokens."""

from collections.abc import Sequence
from typing import Protocol

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Decoder(Protocol):
    """The half of a tokenizer that this module needs."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids."""
        ...


class Detokenizer:
    """Turns a growing list of tokens into pieces of text whose concatenation is the text of the whole.

    Keeps a short window of tokens: the text of [start:end) has been handed out, what follows has not. A piece is handed out
    once it ends on a whole character; tokens may carry parts of one.
    """

    def __init__(self, decoder: Decoder, skip_special_tokens: bool = True) -> None:
        self._decoder = decoder
        self._skip_special_tokens = skip_special_tokens
        self._ids: list[int] = []
        self._end = 0

    def push(self, ids: Sequence[int]) -> str:
        """Take tokens; returns the text that they complete."""
        self._ids.extend(ids)
        piece = self._pending()
        if not piece or piece.endswith(UNFINISHED):
            return ""
        self._advance()
        return piece

    def flush(self) -> str:
        """Return what is left, an unfinished character included."""
        piece = self._pending()
        self._advance()
        return piece

    def _pending(self) -> str:
        known = self._decode(self._ids[: self._end])
        return self._decode(self._ids)[len(known) :]

    def _advance(self) -> None:
        # The last tokens handed out stay as context: how a token reads may depend on the one before it (a leading space).
        self._ids = self._ids[max(0, self._end) :]
        self._end = len(self._ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._decoder.decode(ids, skip_special_tokens=self._skip_special_tokens) if ids else ""


class StopFinder:
    """Finds the first stop string in a growing text, and holds back what may yet become one.

    include: whether the stop string itself belongs to the text.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Take text; returns what may be handed out, and whether a stop string has come (then nothing follows)."""
        if not self._stops:
            return piece, False
        text = self._held + piece
        found = [(text.find(stop), -len(stop)) for stop in self._stops if stop in text]
        if found:
            at, length = min(found)
            self._held = ""
            return text[: at - length if self._include else at], True
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """Return what is held back: the text ends here."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that a proper beginning of `stop` matches."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
