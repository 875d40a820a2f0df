"""What CUDA graphs do to captured calls, on any device: a call that a graph would spoil goes wrong here too."""

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Replaying:
    """A Capture that holds a call to all that a graph would.

    What is not a tensor is settled by the first call of a key, and so is where inputs stand; a result lasts until the next call,
    whatever its key, and is garbage from then on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._calls: dict[Hashable, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {}
        self._result: list[Tensor] = []
        self.replays: Counter[Hashable] = Counter()

    def __call__(self, key: Hashable, run: Callable[..., T], *inputs: Tensor) -> T:
        """Run it, or what was given for the same key before."""
        name = key, *((x.shape, x.dtype) for x in inputs)
        given = [x.to(self._device).clone() for x in inputs]  # they may be the last result
        for tensor in self._result:
            tensor.fill_(True if tensor.dtype == torch.bool else -(10**6))
        self.replays[key] += name in self._calls
        first, places = self._calls.setdefault(name, (run, tuple(torch.empty_like(x) for x in given)))
        for place, value in zip(places, given, strict=True):
            place.copy_(value)
        self._result = []
        result: T = self._copy(first(*places))
        return result

    @property
    def held(self) -> int:
        """How many calls there are to replay."""
        return len(self._calls)

    def forget(self) -> None:
        """Let go of all calls."""
        self._calls.clear()

    def _copy(self, value: Any) -> Any:
        """The same with tensors of its own, which are remembered."""
        if isinstance(value, Tensor):
            self._result.append(value.clone())
            return self._result[-1]
        if isinstance(value, tuple):
            return tuple(self._copy(part) for part in value)
        if is_dataclass(value) and not isinstance(value, type):
            return type(value)(**{f.name: self._copy(getattr(value, f.name)) for f in fields(value)})
        return value
