"""A Profile: how long a model pair's passes take on a machine, as measured; its file, and the budgets that its curves suggest.

Milliseconds, as the keys of the file say.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adaserve.errors import InvalidConfig
from adaserve.stairs import Stairs

CURVES = ("verify_ms_by_rows", "draft_step_ms_by_rows")
FURTHER = "draft_next_ms_by_rows"
NUMBERS = (
    "attention_ms_per_1000_context_tokens",
    "draft_attention_ms_per_1000_context_tokens",
    "step_overhead_ms",
    "residual_cv",
    "baseline_ms_per_token",
)
SAVINGS = "prompt_saves_ms_by_rows"
AFTER = "after_draft_ms"
LARGEST = 1e9
BASELINE_CONTEXT = 80
"""Tokens of context of the request by which the baseline is measured, on average: 64 of its prompt, half of its 32."""


@dataclass(frozen=True)
class Profile:
    """The step-time curves of one model pair on one machine, as `adaserve profile` measures them.

    verify_ms_by_rows: target pass by rows, without the cost of context; draft_step_ms_by_rows: the first pass of a speculation,
        with all that a speculation costs once.
    draft_next_ms_by_rows: each further pass of the same speculation; empty: as much as the first.
    attention_ms_per_1000_context_tokens, draft_...: cost of the paged tokens that attention reads.
    prompt_saves_ms_by_rows: what a pass of which all rows but one are a prompt's takes less than one of trees: nobody needs their
        scores. Empty: nothing.
    after_draft_ms: what a pass of the target takes longer after a speculation, which has displaced its weights from the caches.
    step_overhead_ms: what a step costs beside its passes. residual_cv: standard deviation of measured / predicted.
    baseline_ms_per_token: TPOT of one request alone, without speculation; multiples in SLOs refer to it.
    padded: whether passes compute padding too, as CUDA graphs do (padding.py); a simulated machine then does so.
    An empty draft curve means that there is no draft model. Raises InvalidConfig for curves or numbers that make no sense.
    """

    name: str
    verify_ms_by_rows: Mapping[int, float]
    attention_ms_per_1000_context_tokens: float
    draft_step_ms_by_rows: Mapping[int, float]
    draft_attention_ms_per_1000_context_tokens: float
    step_overhead_ms: float
    residual_cv: float
    baseline_ms_per_token: float
    source: str = ""
    padded: bool = False
    draft_next_ms_by_rows: Mapping[int, float] = field(default_factory=dict)
    prompt_saves_ms_by_rows: Mapping[int, float] = field(default_factory=dict)
    after_draft_ms: float = 0.0

    def __post_init__(self) -> None:
        for key in (*CURVES, FURTHER, SAVINGS):
            curve = getattr(self, key)
            for rows, cost in curve.items():
                if not isinstance(rows, int) or isinstance(rows, bool) or not 1 <= rows <= LARGEST:
                    raise InvalidConfig(f"profile {self.name}: {key} has {rows!r} where a positive number of rows belongs")
                self._check(f"{key}[{rows}]", cost, zero=key == SAVINGS)
            object.__setattr__(self, key, dict(sorted(curve.items())))
        if not self.verify_ms_by_rows:
            raise InvalidConfig(f"profile {self.name}: verify_ms_by_rows is empty")
        for key in (*NUMBERS, AFTER):
            self._check(key, getattr(self, key), zero=key != "baseline_ms_per_token")

    def _check(self, key: str, value: object, zero: bool) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST
        if not number or (value == 0 and not zero):
            low = "0 or more" if zero else "more than 0"
            raise InvalidConfig(f"profile {self.name}: {key} must be a number, {low} and at most {LARGEST:g}, got {value!r}")

    def shared_ms(self, requests: int) -> float:
        """TPOT of each of so many requests at once, without speculation, all like the one of the baseline."""
        verify = Stairs(self.verify_ms_by_rows)
        context = self.attention_ms_per_1000_context_tokens * BASELINE_CONTEXT / 1e3
        return self.baseline_ms_per_token + verify(requests) - verify(1) + context * (requests - 1)

    @classmethod
    def from_json(cls, data: object) -> "Profile":
        """Build a profile from its JSON object; unknown keys are ignored. Raises InvalidConfig."""
        if not isinstance(data, dict):
            raise InvalidConfig("a profile must be a JSON object")
        name = str(data.get("name", "unnamed"))
        missing = [key for key in (*CURVES, *NUMBERS) if key not in data]
        if missing:
            raise InvalidConfig(f"profile {name} lacks {', '.join(missing)}")
        values: dict[str, Any] = {key: data[key] for key in (*NUMBERS, AFTER) if key in data}
        for key in (*CURVES, FURTHER, SAVINGS):
            curve = data.get(key, {})
            if not isinstance(curve, dict):
                raise InvalidConfig(f"profile {name}: {key} must map rows to milliseconds")
            try:
                values[key] = {int(rows): cost for rows, cost in curve.items()}
            except ValueError as error:
                raise InvalidConfig(f"profile {name}: {key} must map whole numbers of rows to milliseconds") from error
        padded = data.get("padded", False)
        if not isinstance(padded, bool):
            raise InvalidConfig(f"profile {name}: padded must be true or false, got {padded!r}")
        return cls(name=name, source=str(data.get("source", "")), padded=padded, **values)

    def to_json(self) -> dict[str, Any]:
        """The profile as a JSON object, rows as strings."""
        data = asdict(self)
        for key in (*CURVES, FURTHER, SAVINGS):
            data[key] = {str(rows): cost for rows, cost in data[key].items()}
        return data

    @classmethod
    def load(cls, path: Path | str) -> "Profile":
        """Read a profile from a JSON file. Raises InvalidConfig when it is missing, broken or makes no sense."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidConfig(f"cannot read profile {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidConfig(f"profile {path} is not JSON: {error}") from error
        try:
            return cls.from_json(data)
        except InvalidConfig as error:
            raise InvalidConfig(f"{path} is not what `adaserve profile` writes: {error}") from error

    def save(self, path: Path | str) -> None:
        """Write the profile as a JSON file; a reader sees the old file or the new one, never half of it."""
        partial = Path(f"{path}.{os.getpid()}.partial")
        partial.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


@dataclass(frozen=True)
class Budgets:
    """Rows a step may spend: `verify` is B1, of the target's pass; `draft` is B2, of each draft pass."""

    verify: int
    draft: int


def budget_from(profile: Profile, requests: int, verify_stretch: float = 2.0, draft_stretch: float = 1.5) -> Budgets:
    """Take default budgets B1 and B2 from the measured curves: the free rows of a memory-bound machine.

    A pass over one row loads all the weights, and more rows ride along for little until arithmetic takes over. Slowing each
    step down is fair only as far as the accepted tokens pay for it: about two tokens come of a step with modest drafts, so
    by default the target's pass may take `verify_stretch` = 2 times a one-row pass; draft passes run d times a step and earn
    nothing by themselves, so they get `draft_stretch` = 1.5.

    Among the measured points within the stretch, the one with the least time per row is taken, the larger of equals. On a
    staircase that is the far edge of a stair: the first row of the next stair would pay for the whole of it. Points between
    measurements are not trusted, since the next stair may begin right behind the last measured row.

    requests: how many may decode at once; each needs a root row, so neither budget is below it. A grid search over real runs
    finds better values; these are where it starts. Raises InvalidConfig for a stretch below 1 or fewer than one request.
    """
    if requests < 1 or not (verify_stretch >= 1 and draft_stretch >= 1):
        raise InvalidConfig("a budget needs at least one request and a stretch of at least 1")

    def edge(curve: Mapping[int, float], stretch: float) -> int:
        points = list(curve.items())
        affordable = [(rows, cost) for rows, cost in points if cost <= stretch * points[0][1]]
        return min(affordable, key=lambda point: (point[1] / point[0], -point[0]))[0] if affordable else 0

    return Budgets(
        max(edge(profile.verify_ms_by_rows, verify_stretch), requests),
        max(edge(profile.draft_step_ms_by_rows, draft_stretch), requests),
    )
