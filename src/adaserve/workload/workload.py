"""Arrival and Workload: which request comes when, and how a whole workload is sped up, cut or given other targets."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from adaserve.request import SLO
from adaserve.workload.made_up import Part, estimate


@dataclass(frozen=True)
class Arrival:
    """One request of a workload.

    at: seconds after the workload's start.
    class_name: what reports group it by.
    chat: the prompt is a user's message, to be put through the chat template; otherwise it is text to be continued.
    ignore_eos: produce max_tokens tokens, whatever the model says.
    input_length: prompt tokens as the trace states them, by a tokenizer of its own; None when it states none.
    parts: a made-up prompt, exactly: texts and the tokens that each is to be cut to. `prompt` is then an estimate of the same
        length, for those without a tokenizer. Empty where `prompt` is what was really said.
    """

    at: float
    prompt: str
    class_name: str
    slo: SLO | None
    max_tokens: int
    chat: bool = False
    ignore_eos: bool = False
    input_length: int | None = None
    parts: tuple[Part, ...] = ()


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

    def since(self, seconds: float) -> "Workload":
        """The requests that arrive at `seconds` or later, at so much earlier times."""
        kept = (arrival for arrival in self.arrivals if arrival.at >= seconds)
        return Workload(tuple(replace(arrival, at=arrival.at - seconds) for arrival in kept)) if seconds else self

    def stopping_at_eos(self) -> "Workload":
        """The same requests, whose outputs end where the model says so: max_tokens is the most they get."""
        return Workload(tuple(replace(arrival, ignore_eos=False) for arrival in self.arrivals))

    def scale_ms(self, factor: float) -> "Workload":
        """Targets in milliseconds times `factor`: they belong to the machine that they were chosen on, this is another."""
        return self._with_slo(
            lambda slo: replace(
                slo,
                tpot_ms=None if slo.tpot_ms is None else slo.tpot_ms * factor,
                ttft_ms=None if slo.ttft_ms is None else slo.ttft_ms * factor,
            )
        )

    def scale_class(self, name: str, factor: float) -> "Workload":
        """TPOT targets of one class times `factor`, however they are stated."""
        scaled = Workload(tuple(arrival for arrival in self.arrivals if arrival.class_name == name))._with_slo(
            lambda slo: replace(
                slo,
                tpot_ms=None if slo.tpot_ms is None else slo.tpot_ms * factor,
                tpot_multiple=None if slo.tpot_multiple is None else slo.tpot_multiple * factor,
            )
        )
        changed = iter(scaled.arrivals)
        return Workload(tuple(next(changed) if arrival.class_name == name else arrival for arrival in self.arrivals))

    def with_slos(self, slos: Mapping[str, SLO]) -> "Workload":
        """The same requests, those of the named classes with these targets."""
        return Workload(tuple(replace(arrival, slo=slos.get(arrival.class_name, arrival.slo)) for arrival in self.arrivals))

    def scale_lengths(self, prompt: float = 1.0, output: float = 1.0) -> "Workload":
        """Shorter requests: the first `prompt` (0 to 1) of each prompt, and `output` times as many tokens to produce.

        A prompt keeps at least a character, or a token of each part that it is made up of; an output at least one token.
        Raises ValueError unless 0 < prompt <= 1 and 0 < output.
        """
        if not (0 < prompt <= 1 and 0 < output < float("inf")):
            raise ValueError(f"the prompts' scale must be above 0 and at most 1, the outputs' above 0, got {prompt} and {output}")
        if prompt == output == 1:
            return self
        return Workload(tuple(_shortened(arrival, prompt, output) for arrival in self.arrivals))

    def _with_slo(self, change: Callable[[SLO], SLO]) -> "Workload":
        return Workload(
            tuple(arrival if arrival.slo is None else replace(arrival, slo=change(arrival.slo)) for arrival in self.arrivals)
        )


def _shortened(arrival: Arrival, prompt: float, output: float) -> Arrival:
    parts = tuple(replace(part, tokens=_share(part.tokens, prompt)) for part in arrival.parts)
    length = sum(part.tokens for part in parts) if parts else arrival.input_length
    return replace(
        arrival,
        parts=parts,
        prompt=estimate(parts) if parts else arrival.prompt[: _share(len(arrival.prompt), prompt)],
        input_length=length if parts or length is None else _share(length, prompt),
        max_tokens=_share(arrival.max_tokens, output),
    )


def _share(count: int, factor: float) -> int:
    return max(1, round(count * factor))
