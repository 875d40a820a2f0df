"""How the GPU benchmarks time: calls between device events, graphs as they are launched, and a call's time by kernel."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

AHEAD = 20_000_000
"""Cycles that the device is kept busy while something is launched: about 10 ms."""


def milliseconds(run: Callable[[], object], repeats: int = 20, warm_up: int = 3, *, queued: bool = False) -> float:
    """Median device time of a call; queued: of one that is launched while the device is busy with something else."""
    for _ in range(warm_up):
        run()
    times = []
    for _ in range(repeats):
        if queued:
            torch.cuda._sleep(AHEAD)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def graph_of(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Capture a call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        run()
        graph.capture_begin(capture_error_mode="thread_local")
        run()
        graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph


def by_kernel(run: Callable[[], object], repeats: int = 3) -> list[tuple[str, float, int]]:
    """Device time of a call by kernel, the longest first: name, ms, launches; the first entry is what no kernel used."""
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        begin = time.perf_counter()
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
        wall = (time.perf_counter() - begin) * 1e3 / repeats
    rows = [(e.key, e.self_device_time_total / 1e3 / repeats, e.count // repeats) for e in found.key_averages()]
    rows = sorted((r for r in rows if r[1] > 0), key=lambda r: -r[1])
    return [("wall less kernels", wall - sum(r[1] for r in rows), sum(r[2] for r in rows)), *rows]


def print_kernels(rows: list[tuple[str, float, int]], most: int = 14) -> None:
    for name, ms, count in rows[:most]:
        print(f"    {ms:8.3f} ms {count:5} x  {name[:110]}")


class GraphTimes:
    """When the device ran graphs: an event before and one after each replay.

    A graph that was launched while the one before it ran begins at that one's end, as far as these events can tell, so what lies
    between graphs is time in which the device had none.
    """

    def __init__(self) -> None:
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def count(self) -> int:
        """Graphs launched so far."""
        return len(self._events)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take note of every graph that is launched meanwhile."""
        plain = torch.cuda.CUDAGraph.replay

        def replay(graph: torch.cuda.CUDAGraph) -> None:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            plain(graph)
            end.record()
            self._events.append((begin, end))

        with patch.object(torch.cuda.CUDAGraph, "replay", replay):
            yield

    def span(self, first: int, last: int) -> tuple[float, float]:
        """Milliseconds from the beginning of graph `first` to that of graph `last`, or the end of the last one but it; and how
        many of them graphs ran. Waits for the device.
        """
        settle()
        events = self._events[first:last]
        close = self._events[last][0] if last < len(self._events) else events[-1][1]
        return events[0][0].elapsed_time(close), sum(begin.elapsed_time(end) for begin, end in events)


def settle() -> None:
    """Wait for the device, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free_memory() -> None:
    """Give back what no tensor uses any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
