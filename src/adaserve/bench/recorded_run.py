"""A real run, written down so that the simulator can be held against it: its requests, their outputs, its steps' seconds."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adaserve.bench.replay import Replay
from adaserve.engine import StepReport
from adaserve.errors import InvalidConfig
from adaserve.latency import LatencyModel
from adaserve.metrics import RequestResult, percentile_ms, share
from adaserve.profile import Profile
from adaserve.request import Request, SamplingParams, Targets
from adaserve.step import StepShape

Timed = Sequence[tuple[float, Request]]


@dataclass(frozen=True)
class Figures:
    """What a simulation is judged by. None where nothing was measured."""

    attainment: float | None
    tpot_p50_ms: float | None

    @classmethod
    def of(cls, results: Sequence[RequestResult]) -> "Figures":
        """The figures of a run's requests."""
        return cls(share(r.attained for r in results), percentile_ms((r.tpot for r in results), 50))


@dataclass(frozen=True)
class RecordedRun:
    """One policy's run.

    timed: seconds of arrival, and requests. outputs: each one's tokens, by id. steps: shapes, and seconds until the next step.
    slots, kv_tokens, page_size: of the engine. figures: of the run.
    """

    policy: str
    timed: Timed
    outputs: dict[str, tuple[int, ...]]
    steps: Sequence[tuple[StepShape, float]]
    slots: int
    kv_tokens: int
    page_size: int
    figures: Figures

    def residuals(self, profile: Profile) -> tuple[float, ...]:
        """Measured / predicted of every step, as a profile predicts that never learns."""
        model = LatencyModel(profile)
        return tuple(seconds / model.predict(shape) for shape, seconds in self.steps)

    def save(self, path: Path) -> None:
        """Write it as JSON. Raises InvalidConfig when that cannot be done."""
        data = vars(self) | {
            "timed": [[at, asdict(request)] for at, request in self.timed],
            "steps": [[*asdict(shape).values(), seconds] for shape, seconds in self.steps],
            "figures": asdict(self.figures),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(data) + "\n", encoding="utf-8")
        except OSError as error:
            raise InvalidConfig(f"cannot write {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: Path) -> "RecordedRun":
        """Read what `save` wrote. Raises InvalidConfig for anything else."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                **data
                | {
                    "timed": [(at, _request(request)) for at, request in data["timed"]],
                    "outputs": {name: tuple(tokens) for name, tokens in data["outputs"].items()},
                    "steps": [
                        (StepShape(rows, context, tuple(draft_rows), draft_context, *prompt), seconds)
                        for rows, context, draft_rows, draft_context, *prompt, seconds in data["steps"]
                    ],
                    "figures": Figures(**data["figures"]),
                }
            )
        except OSError as error:
            raise InvalidConfig(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidConfig(f"{path} is not what `adaserve bench --record` writes: {error}") from error


class RunRecorder:
    """Takes a run down while it goes on: hand `on_step` to the replay, then call `finish`."""

    def __init__(self, timed: Timed) -> None:
        self._timed = timed
        self._outputs: dict[str, tuple[int, ...]] = {request.id: () for _, request in timed}
        self._steps: list[tuple[StepShape, float]] = []

    def on_step(self, report: StepReport, seconds: float) -> None:
        """Hear of a step; see `replay`."""
        for update in report.updates:
            self._outputs[update.id] += update.tokens
        if report.outcome is not None:
            self._steps.append((report.outcome.shape, seconds))

    def finish(self, policy: str, played: Replay, *, slots: int, kv_tokens: int, page_size: int) -> RecordedRun:
        """The recorded run."""
        figures = Figures.of((*played.results, *played.refused))
        return RecordedRun(policy, self._timed, self._outputs, self._steps, slots, kv_tokens, page_size, figures)


def free_path(folder: Path, policy: str) -> Path:
    """Where the next run of a policy goes in a folder of recorded runs: policy.1.json, policy.2.json and so on."""
    stem = policy.replace(":", "-")
    number = 1
    while (path := folder / f"{stem}.{number}.json").exists():
        number += 1
    return path


def _request(data: dict[str, Any]) -> Request:
    whole = replace(SamplingParams(), **{name: _tuples(value) for name, value in data["sampling"].items()})
    return Request(
        **data
        | {
            "prompt": tuple(data["prompt"]),
            "stop_ids": tuple(data["stop_ids"]),
            "sampling": whole,
            "targets": Targets(**data["targets"]),
        }
    )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
