"""Ranks: rank 0's hold on the other ranks, each a process of its own on this machine.

A process ends when its standard input closes, and that closes with rank 0's process, whatever ended it: none is left behind.
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from socket import socketpair

from adaserve.errors import EngineFailed, InvalidConfig
from adaserve.parallel.messages import Failed, FromRank, Link, Message

RANK = (sys.executable, "-m", "adaserve.rank")
"""What another rank runs, to be followed by the descriptor of its socket and the ranks' folder."""
LOST_OTHERS = 3
"""Exit status of a rank that ends because another one does not answer."""
PATIENCE = 5.0
"""Seconds in which a process ends that was asked to, and in which one that broke a connection turns out to have died."""


@dataclass(frozen=True)
class Ranks:
    """The links to ranks 1, 2, ..., and their processes; no processes where the ranks are threads of a test.

    folder: private to this world; its ranks meet there.
    """

    links: tuple[Link, ...]
    processes: tuple["subprocess.Popen[bytes]", ...]
    folder: Path
    closing: threading.Event

    @staticmethod
    def start(count: int, command: Sequence[str] = RANK) -> "Ranks":
        """Start the processes of `count` other ranks."""
        folder = Path(tempfile.mkdtemp(prefix="adaserve-"))
        links: list[Link] = []
        processes: list[subprocess.Popen[bytes]] = []
        ranks = None
        try:
            for _ in range(count):
                ours, theirs = socketpair()
                links.append(Link(ours))
                with theirs:
                    whole = [*command, str(theirs.fileno()), str(folder)]
                    processes.append(subprocess.Popen(whole, stdin=subprocess.PIPE, pass_fds=[theirs.fileno()]))
            ranks = Ranks(tuple(links), tuple(processes), folder, threading.Event())
        finally:
            if ranks is None:
                _end(links, processes, folder, threading.Event())
        weakref.finalize(ranks, _end, ranks.links, ranks.processes, folder, ranks.closing)  # also when the interpreter exits
        return ranks

    def send(self, message: Message) -> None:
        """Tell every other rank; raises EngineFailed when one has gone."""
        for link in self.links:
            link.send(message)

    def answers(self, kind: type[Message]) -> list[FromRank]:
        """Wait for every other rank's answer of this kind, by rank. Raises what a rank says that went wrong, or EngineFailed."""
        found: list[FromRank] = []
        for rank, link in enumerate(self.links, start=1):
            answer = link.answer()
            if isinstance(answer, Failed):
                raise (InvalidConfig if answer.wanted else EngineFailed)(f"rank {rank}: {answer.text}")
            if not isinstance(answer, kind):
                raise EngineFailed(f"rank {rank} of the tensor-parallel engine died while it was starting{self._exit(rank)}")
            found.append(answer)
        return found

    def check(self) -> None:
        """Raise EngineFailed when a process has ended."""
        for rank, process in enumerate(self.processes, start=1):
            if process.poll() is not None:
                raise EngineFailed(self._death(self._dead(PATIENCE) or rank))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Whatever fails meanwhile because a rank has died is told as that, and the others are ended."""
        try:
            yield
        except Exception as error:
            dead = self._dead(PATIENCE if isinstance(error, EngineFailed) else 0.0)
            if dead is None:
                raise
            told = self._death(dead)
            self.close()
            raise EngineFailed(told) from error

    def watch(self, died: Callable[[], None]) -> None:
        """Call `died`, on a thread, when a process ends that was not asked to."""
        for process in self.processes:
            threading.Thread(target=_wait, args=(process, self.closing, died), daemon=True).start()

    def close(self) -> None:
        """End the processes; harmless when done before."""
        _end(self.links, self.processes, self.folder, self.closing)

    def _dead(self, patience: float) -> int | None:
        """The rank whose end explains the others': they end when they lose it. One may take so many seconds to have ended."""
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience / len(self.processes))
                break
        ended = [(p.returncode, rank) for rank, p in enumerate(self.processes, start=1) if p.poll() is not None]
        return min(ended, key=lambda end: (end[0] == LOST_OTHERS, end[0] >= 0, end[1]), default=(0, None))[1]

    def _death(self, rank: int) -> str:
        return f"rank {rank} of the tensor-parallel engine died{self._exit(rank)}: start the engine again"

    def _exit(self, rank: int) -> str:
        """What is known of a process's end, for people."""
        if not self.processes:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.processes[rank - 1].wait(PATIENCE)
            said = self._last_word(rank) if status > 0 else None
            return f" ({said})" if said else f" (signal {-status})" if status < 0 else f" (exit status {status})"
        return ""

    def _last_word(self, rank: int) -> str | None:
        with contextlib.suppress(EngineFailed):
            while (answer := self.links[rank - 1].answer()) is not None:
                if isinstance(answer, Failed):
                    return answer.text
        return None


def _wait(process: "subprocess.Popen[bytes]", closing: threading.Event, died: Callable[[], None]) -> None:
    process.wait()
    if not closing.is_set():
        died()


def _end(links: Sequence[Link], processes: Sequence["subprocess.Popen[bytes]"], folder: Path, closing: threading.Event) -> None:
    """Hang up, and see to it that the processes end."""
    closing.set()
    for link in links:
        link.close()
    for process in processes:
        if process.stdin is not None:
            process.stdin.close()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    shutil.rmtree(folder, ignore_errors=True)
