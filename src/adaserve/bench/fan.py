"""Work fanned out over processes: independent tasks, each in a forked process of its own, that send what they find.

    parent   gathers items as they come,      task 0   item  item  end
             starts the next task where       task 1   item  end
             one ended                        task 2         item  item  end

A fork inherits everything that a task closes over, so nothing but the items travels. Simulated runs are Python and small tensors,
which one process cannot spread over cores; and a run depends on its arguments alone, so that it does not matter where it is made.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import TypeVar

from adaserve.errors import AdaServeError, InvalidConfig

T = TypeVar("T")
Task = Callable[[Callable[[T], None]], None]
"""Called with a function that sends an item to the parent."""

POLL = 0.2
"""Seconds between two looks at `stop` while nothing comes."""


class TaskFailed(AdaServeError):
    """A task's process died, or raised anything but InvalidConfig."""


class _Kind(Enum):
    ITEM = "item"
    ERROR = "error"
    END = "end"


def fan(tasks: Sequence[Task[T]], jobs: int, stop: Callable[[], bool] = lambda: False) -> Iterator[T]:
    """Run the tasks, up to `jobs` at once and begun in order; yields their items as they come.

    When `stop` says so no more tasks begin, and those that run get one SIGTERM: what they still send is yielded. They do not
    hear Ctrl-C themselves. Raises the InvalidConfig that a task raised, TaskFailed for anything else; other tasks are ended then.
    """
    context = multiprocessing.get_context("fork")
    waiting = deque(tasks)
    running: dict[Connection, ForkProcess] = {}
    told = False
    try:
        while waiting or running:
            while waiting and len(running) < jobs and not stop():
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(waiting.popleft(), theirs), daemon=True)
                process.start()
                theirs.close()
                running[ours] = process
            if stop() and not told:
                told = True
                waiting.clear()
                for process in running.values():
                    process.terminate()
            for ready in wait(list(running), POLL):
                assert isinstance(ready, Connection)
                try:
                    kind, item = ready.recv()
                except EOFError:
                    kind, item = (_Kind.END, None) if told else (_Kind.ERROR, TaskFailed("a process ended before its task did"))
                if kind is _Kind.ITEM:
                    yield item
                    continue
                running.pop(ready).join()
                ready.close()
                if kind is _Kind.ERROR:
                    raise item
    finally:
        for process in running.values():
            process.kill()
            process.join()


def _work(task: Task[T], connection: Connection) -> None:
    """A task's whole process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and says what follows
    try:
        task(lambda item: connection.send((_Kind.ITEM, item)))
    except InvalidConfig as error:
        connection.send((_Kind.ERROR, InvalidConfig(*error.args)))
    except Exception as error:  # which need not survive the way to another process
        connection.send((_Kind.ERROR, TaskFailed(f"{type(error).__name__}: {error}")))
    else:
        connection.send((_Kind.END, None))
