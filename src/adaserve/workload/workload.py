"""Arrival and Workload: which request comes when, and how a whole workload is sped up, cut or given other targets."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from adaserve.request import SLO


@dataclass(frozen=True)
class Arrival:
    """One request of a workload.

    at: seconds after the workload's start.
    class_name: what reports group it by.
    chat: the prompt is a user's message, to be put through the chat template; otherwise it is text to be continued.
    ignore_eos: produce max_tokens tokens, whatever the model says.
    """

    at: float
    prompt: str
    class_name: str
    slo: SLO | None
    max_tokens: int
    chat: bool = False
    ignore_eos: bool = False


@dataclass(frozen=True)
class Workload:
    """Requests in order of arrival. Raises ValueError when they are not in order, or one comes before the start."""

    arrivals: tuple[Arrival, ...]

    def __post_init__(self) -> None:
        last = 0.0
        for number, arrival in enumerate(self.arrivals):
            if not arrival.at >= last:  # also catches NaN
                raise ValueError(f"arrival {number} comes at {arrival.at} s, before {last} s")
            last = arrival.at

    def __len__(self) -> int:
        return len(self.arrivals)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, the most frequent first."""
        return tuple(name for name, _ in Counter(arrival.class_name for arrival in self.arrivals).most_common())

    def at_speed(self, speed: float) -> "Workload":
        """The same requests in less time: a load `speed` times as high. Raises ValueError unless `speed` is positive."""
        if not 0 < speed < float("inf"):
            raise ValueError(f"speed must be a finite positive number, got {speed}")
        return Workload(tuple(replace(arrival, at=arrival.at / speed) for arrival in self.arrivals))

    def until(self, seconds: float) -> "Workload":
        """The requests that arrive before `seconds`."""
        return Workload(tuple(arrival for arrival in self.arrivals if arrival.at < seconds))

    def scale_ms(self, factor: float) -> "Workload":
        """Targets in milliseconds times `factor`: they belong to the machine that they were chosen on, this is another."""
        return self._with_slo(
            lambda slo: replace(
                slo,
                tpot_ms=None if slo.tpot_ms is None else slo.tpot_ms * factor,
                ttft_ms=None if slo.ttft_ms is None else slo.ttft_ms * factor,
            )
        )

    def scale_multiples(self, factor: float) -> "Workload":
        """Targets given as multiples of the baseline times `factor`: the paper's SLO scale (its Figure 11)."""
        return self._with_slo(
            lambda slo: replace(slo, tpot_multiple=None if slo.tpot_multiple is None else slo.tpot_multiple * factor)
        )

    def _with_slo(self, change: Callable[[SLO], SLO]) -> "Workload":
        return Workload(
            tuple(arrival if arrival.slo is None else replace(arrival, slo=change(arrival.slo)) for arrival in self.arrivals)
        )
