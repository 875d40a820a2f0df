"""Runs functions of tensors: as they are, or on a GPU as CUDA graphs, one for each key.

A step of a large model is a thousand small kernels: launching them one by one takes the host longer than they take the device.
"""

import contextlib
import gc
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

MOST_GRAPHS = 512
"""Graphs that are kept; beyond, the one that was not used for the longest time goes."""
REMEMBERED = 4096
"""Keys that were seen once."""

SHORTEST_REACH = 256

T = TypeVar("T")


class Capture(Protocol):
    """Calls `run(*inputs)`, which reads and writes tensors and never lets the host wait for the device.

    key names everything else that the result depends on. Inputs may lie in pinned host memory, and are read on the device.
    The result is to be read before the next call, with whatever key: all calls may work in the same memory.
    """

    def __call__(self, key: Hashable, run: Callable[..., T], *inputs: Tensor) -> T:
        """Run it."""
        ...

    def forget(self) -> None:
        """Let go of all that was captured: NCCL ends a group only after every graph that holds one of its collectives."""
        ...


class Plainly:
    """Just calls."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, key: Hashable, run: Callable[..., T], *inputs: Tensor) -> T:
        """Run it."""
        return run(*(x.to(self._device, non_blocking=True) for x in inputs))

    def forget(self) -> None:
        """There is nothing."""


def reach(longest: int) -> int:
    """A bound on contexts that seldom changes, for keys: the next power of four. It decides how the context is shared out."""
    bits = max(longest - 1, SHORTEST_REACH - 1).bit_length()
    return 1 << bits + bits % 2


@dataclass(frozen=True)
class _Graph:
    """A captured call: its inputs in place, and its result, which replays write again."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    result: Any


class GraphCapture:
    """Captures a call the second time that its key and the shapes of its inputs occur, and replays it from then on.

    The first time it is just called, so that kernels are compiled and one-off shapes cost no capture.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Shared by all graphs, one of which runs at a time: one that was captured before another may overwrite its result.
        self._memory = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._seen: dict[Hashable, None] = {}
        self._graphs: dict[Hashable, _Graph] = {}

    def __call__(self, key: Hashable, run: Callable[..., T], *inputs: Tensor) -> T:
        """Run it."""
        name = key, *((x.shape, x.dtype) for x in inputs)
        found = self._graphs.pop(name, None)
        if found is None:
            if name not in self._seen:
                self._seen[name] = None
                if len(self._seen) > REMEMBERED:
                    del self._seen[next(iter(self._seen))]
                return run(*(x.to(self._device, non_blocking=True) for x in inputs))
            found = self._capture(run, inputs)
        self._graphs[name] = found  # the latest last
        given = [x for x in inputs if x.numel()]
        if given:
            torch._foreach_copy_([x for x in found.inputs if x.numel()], given, non_blocking=True)  # one call for all
        found.graph.replay()
        result: T = found.result
        return result

    def forget(self) -> None:
        """Let go of the graphs."""
        self._graphs.clear()

    def _capture(self, run: Callable[..., Any], inputs: tuple[Tensor, ...]) -> _Graph:
        if len(self._graphs) >= MOST_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        places = tuple(torch.empty(x.shape, dtype=x.dtype, device=self._device) for x in inputs)
        graph, result = capture(lambda: run(*places), self._memory, self._stream)
        return _Graph(graph, places, result)


def capture(run: Callable[[], T], memory: Any, stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, T]:
    """Capture a call on a stream of its own; nothing is executed. Its tensors live in `memory`."""
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    collects = gc.isenabled()
    gc.disable()  # another graph that is found to be garbage and destroyed meanwhile would spoil this one
    try:
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=memory, capture_error_mode="thread_local")
            try:
                result = run()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # what went wrong is said by the first error
                    graph.capture_end()
                raise
            graph.capture_end()
    finally:
        if collects:
            gc.enable()
    torch.cuda.current_stream().wait_stream(stream)
    return graph, result
