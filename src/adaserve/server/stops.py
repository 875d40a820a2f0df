"""Stop strings in a growing text. They may straddle tokens, so what may yet become one is held back."""

from collections.abc import Sequence


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
