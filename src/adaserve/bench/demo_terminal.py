"""What the demo needs of a terminal: a progress line that rewrites itself, colour, and text that wraps as it streams."""

import os
import shutil
from typing import TextIO

QUIET_INTERVAL = 10.0
"""Seconds between progress lines where lines cannot be rewritten (a log file, a CI run)."""


class Terminal:
    """Writes to a stream; plain text unless the stream is a terminal (and NO_COLOR is not set, as far as colour goes)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rewrites = stream.isatty()
        self._colours = self._rewrites and "NO_COLOR" not in os.environ
        self._live = False
        self._last: float | None = None

    def say(self, text: str = "") -> None:
        """Write a line for good."""
        self.clear()
        print(text, file=self._stream, flush=True)

    def progress(self, text: str, now: float) -> None:
        """Show the state of things at `now` seconds, in place of what the last call showed."""
        if self._rewrites:
            width = shutil.get_terminal_size().columns
            print(f"\r\x1b[2K{text[: width - 1]}", end="", file=self._stream, flush=True)
            self._live = True
        elif self._last is None or now - self._last >= QUIET_INTERVAL:
            self._last = now
            print(text, file=self._stream, flush=True)

    def clear(self) -> None:
        """Take the progress line away."""
        if self._live:
            print("\r\x1b[2K", end="", file=self._stream, flush=True)
        self._live = False
        self._last = None

    def stream(self, text: str) -> None:
        """Write text without ending the line."""
        print(text, end="", file=self._stream, flush=True)

    def bold(self, text: str) -> str:
        """The text, bold where that can be shown."""
        return f"\x1b[1m{text}\x1b[0m" if self._colours else text

    def green(self, text: str) -> str:
        """The text, green where that can be shown."""
        return f"\x1b[32m{text}\x1b[0m" if self._colours else text

    def dim(self, text: str) -> str:
        """The text, faint where that can be shown."""
        return f"\x1b[2m{text}\x1b[0m" if self._colours else text


def bar(done: float, width: int = 24) -> str:
    """A bar of `width` characters, filled to the share `done`, from 0 to 1."""
    filled = round(min(max(done, 0.0), 1.0) * width)
    return "█" * filled + "░" * (width - filled)


class Wrap:
    """Wraps text that comes in pieces: `push` returns what can be written already, whole words alone; `rest` the remainder."""

    def __init__(self, width: int, indent: str) -> None:
        self._width = width
        self._indent = indent
        self._column = 0
        self._word = ""

    def push(self, piece: str) -> str:
        """Take in a piece of text; return what may be written now."""
        out = ""
        for character in piece:
            if character not in " \n":
                self._word += character
                continue
            out += self.rest()
            if character == "\n":
                out += "\n"
                self._column = 0
            elif self._column > 0:
                out += " "
                self._column += 1
        return out

    def rest(self) -> str:
        """Return the word that is still held back."""
        word, self._word = self._word, ""
        if not word:
            return ""
        out = ""
        if self._column + len(word) > self._width and self._column > 0:
            out, self._column = "\n", 0
        if self._column == 0:
            out += self._indent
        self._column += len(word)
        return out + word
