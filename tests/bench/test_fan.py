"""Fanning out: everything comes, once; errors and deaths are heard of; a stop keeps what was sent."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaserve.bench.fan import TaskFailed, fan
from adaserve.errors import InvalidConfig

Send = Callable[[object], None]


def count(name: int, most: int, send: Send) -> None:
    for k in range(most):
        send((name, k))


@given(st.lists(st.integers(0, 3), max_size=5), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_every_item_of_every_task_comes_once_and_each_tasks_in_order(counts: list[int], jobs: int) -> None:
    items = list(fan([partial(count, name, most) for name, most in enumerate(counts)], jobs))
    assert sorted(items) == [(name, k) for name, most in enumerate(counts) for k in range(most)]
    for name, most in enumerate(counts):
        assert [k for n, k in items if n == name] == list(range(most))


def test_tasks_run_in_processes_of_their_own_as_many_at_once_as_asked_for() -> None:
    def meet(mine: int, other: int, send: Send) -> None:
        os.write(mine, b"x")
        os.read(other, 1)  # returns once the other one runs too
        send(os.getpid())

    first, second = os.pipe(), os.pipe()
    pids = list(fan([partial(meet, first[1], second[0]), partial(meet, second[1], first[0])], 2))
    assert len({*pids, os.getpid()}) == 3


def raising(error: Exception, send: Send) -> None:
    send("before")
    raise error


def test_what_a_task_raises_is_raised_here_after_what_it_sent() -> None:
    items: Iterator[object] = fan([partial(raising, InvalidConfig("a bad word"))], 2)
    assert next(items) == "before"
    with pytest.raises(InvalidConfig, match="a bad word"):
        next(items)


def test_any_other_error_says_what_it_said() -> None:
    class Local(Exception):
        pass

    with pytest.raises(TaskFailed, match="Local: out of luck"):
        list(fan([partial(raising, Local("out of luck"))], 1))


def test_a_process_that_dies_is_noticed_and_the_others_end_with_it() -> None:
    def die(send: Callable[[int], None]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def never(send: Callable[[int], None]) -> None:
        send(os.getpid())
        time.sleep(60)

    items: Iterator[int] = fan([never, die], 2)
    pid = next(items)
    with pytest.raises(TaskFailed):
        next(items)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_stop_lets_running_tasks_say_their_last_word_and_begins_no_others() -> None:
    def until_told(send: Callable[[str], None]) -> None:
        told: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
        send("running")
        while not told:
            time.sleep(0.01)
        send("told")

    heard: list[str] = []
    for item in fan([until_told, until_told], 1, stop=lambda: bool(heard)):
        heard.append(item)
    assert heard == ["running", "told"]
