"""How long a step will take: a measured Profile, and a LatencyModel that starts from it and corrects itself.

    verify    = stairs(rows) - stairs of savings(rows) * share of prompt rows + attention * context [+ after a draft]
    speculate = draft stairs(rows) of its first pass + draft stairs(rows) of each further one + draft attention * draft context
    overhead  = everything else (scheduling, selection, commit)

The `stairs` are curves of time by rows: flat while the weights' way through memory dominates, then climbing in steps of the
machine's tile size. Seconds inside; the profile's file is in milliseconds, as its keys say.
"""

import json
import math
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adaserve.errors import InvalidConfig
from adaserve.step import PhaseTimes, StepShape

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
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= LARGEST or (value == 0 and not zero):  # type: ignore[operator]
            low = "0 or more" if zero else "more than 0"
            raise InvalidConfig(f"profile {self.name}: {key} must be a number, {low} and at most {LARGEST:g}, got {value!r}")

    def shared_ms(self, requests: int) -> float:
        """TPOT of each of so many requests at once, without speculation, all like the one of the baseline."""
        verify = _Stairs(self.verify_ms_by_rows)
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


class _Stairs:
    """Time by rows: linear between measured points, flat before the first, with the last slope after the last.

    Each point carries a correction factor of its own, 1 to begin with.
    """

    def __init__(self, curve: Mapping[int, float]) -> None:
        self._rows = list(curve)
        self._measured = list(curve.values())
        self._log = [0.0] * len(self._rows)
        self._cost = list(self._measured)
        self._slope = [0.0] * len(self._rows)  # from each point on
        self._settle(0, len(self._rows))

    def __call__(self, rows: int) -> float:
        if rows <= 0 or not self._rows:
            return 0.0
        left = bisect_right(self._rows, rows) - 1
        if left < 0:
            return self._cost[0]
        return self._cost[left] + self._slope[left] * (rows - self._rows[left])

    def run(self, rows: int, most: int) -> list[float]:
        """The time of `rows`, of one more, ... and of `most` more rows."""
        if not self._rows:
            return [0.0] * (most + 1)
        found: list[float] = []
        while len(found) <= most:  # a stair at a time
            begin, end = rows + len(found), rows + most + 1
            left = bisect_right(self._rows, begin) - 1
            if left < 0:
                end = min(end, self._rows[0])
                found += [self._cost[0]] * (end - begin)
                continue
            low, base, slope = self._rows[left], self._cost[left], self._slope[left]
            if left + 1 < len(self._rows):
                end = min(end, self._rows[left + 1])
            found += [slope * (at - low) + base for at in range(begin, end)]
        return found

    def nudge(self, rows: int, step: float, bound: float) -> None:
        """Add `step` to the log-corrections around `rows`, shared by nearness; each stays within [-bound, bound]."""
        last = len(self._rows) - 1
        left = max(bisect_right(self._rows, rows) - 1, 0)
        share = 1.0 if left == last else (rows - self._rows[left]) / (self._rows[left + 1] - self._rows[left])
        share = min(max(share, 0.0), 1.0)
        for index, part in ((left, 1.0 - share if left < last else 1.0), (left + 1, share)):
            if index <= last:
                self._log[index] = min(max(self._log[index] + step * part, -bound), bound)
                self._cost[index] = self._measured[index] * math.exp(self._log[index])
        self._settle(left - 1, left + 2)

    def _settle(self, begin: int, end: int) -> None:
        """Work out the slopes from these points on: to the next one; after the last as before it, but never down."""
        last = len(self._rows) - 1
        for left in range(max(begin, 0), min(end, last)):
            self._slope[left] = (self._cost[left + 1] - self._cost[left]) / (self._rows[left + 1] - self._rows[left])
        if last > 0:
            self._slope[last] = max(self._slope[last - 1], 0.0)


@dataclass(frozen=True)
class Prediction:
    """Predicted seconds of a step, by phase; `overhead` is scheduling, selection and commit together."""

    speculate: float
    verify: float
    overhead: float

    @property
    def total(self) -> float:
        """The whole step's seconds."""
        return self.speculate + self.verify + self.overhead


class LatencyModel:
    """Predicts a step's duration from its shape, and learns from every step that was measured.

    One factor per phase follows the measured ratio: each step moves its logarithm by RATE times the surprise, and a surprise
    counts for at most CLIP. So an outlier of any size moves a prediction by about 1%, and a profile that is wrong by 2x is
    corrected within 100 steps. A weaker correction at each measured point of the target's curve bends its shape.
    """

    RATE = 0.05
    POINT_RATE = 0.01
    CLIP = 0.25
    POINT_BOUND = math.log(1.5)
    ERROR_WINDOW = 200

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._verify = _Stairs({rows: cost / 1e3 for rows, cost in profile.verify_ms_by_rows.items()})
        self._draft = _Stairs({rows: cost / 1e3 for rows, cost in profile.draft_step_ms_by_rows.items()})
        further = profile.draft_next_ms_by_rows or profile.draft_step_ms_by_rows
        self._draft_next = _Stairs({rows: cost / 1e3 for rows, cost in further.items()})
        self._attention = profile.attention_ms_per_1000_context_tokens / 1e6  # s per token
        self._savings = _Stairs({rows: saved / 1e3 for rows, saved in profile.prompt_saves_ms_by_rows.items()})
        self._after_draft = profile.after_draft_ms / 1e3
        self._draft_attention = profile.draft_attention_ms_per_1000_context_tokens / 1e6
        self._verify_factor = 1.0
        self._draft_factor = 1.0
        self._overhead = profile.step_overhead_ms / 1e3
        self._error = 0.0
        self._observed = 0

    @property
    def baseline(self) -> float:
        """Seconds per token of one request alone, without speculation; as measured, never corrected, for SLOs refer to it."""
        return self.profile.baseline_ms_per_token / 1e3

    @property
    def longest(self) -> int:
        """Rows of the longest pass of the target that was measured; of longer ones the prediction is a guess."""
        return max(self.profile.verify_ms_by_rows)

    @property
    def error(self) -> float:
        """Running mean of |predicted / measured - 1|, over about the last ERROR_WINDOW steps; 0 before the first."""
        return self._error

    def predict(self, shape: StepShape) -> float:
        """Predicted seconds of a step of this shape."""
        return self._speculate(shape) + self._verify_of(shape) + self._overhead

    def predict_phases(self, shape: StepShape) -> Prediction:
        """Predicted seconds of a step of this shape, by phase."""
        return Prediction(self._speculate(shape), self._verify_of(shape), self._overhead)

    def by_depth(self, rows: Sequence[int], first: int, further: int, *, context: int = 0, prompt: int = 0) -> list[float]:
        """Predicted seconds of steps with 0, 1, ... passes of the draft, the context that it reads left out.

        rows: of the target's pass in each of these steps. first, further: of the draft's first pass and of each later one.
        context, prompt: as in a StepShape, the same in all steps.
        """
        found, draft, add = [], 0.0, self._draft(first)
        later = self._draft_next(further)
        for depth, computed in enumerate(rows):
            if depth:
                draft, add = draft + add, later
            found.append(self._draft_factor * draft + self._verify_seconds(computed, context, prompt, depth > 0) + self._overhead)
        return found

    def reading(self, rows: int) -> float:
        """Predicted seconds in which the draft reads so many rows in one pass."""
        return self._draft_factor * self._draft(rows)

    def added(self, rows: int, most: int, unit: float, *, prompt: bool = False) -> tuple[float, ...]:
        """What 0, 1, ... `most` further rows add to a pass of the target over `rows` of them, in units of `unit` seconds.

        prompt: whether they are a prompt's.
        """
        cost = self._verify.run(rows, most)
        scale = self._verify_factor / unit
        if not prompt:
            return tuple([scale * (c - cost[0]) for c in cost])
        least, saved = cost[0], _saved_by(cost, self._savings.run(rows, most), rows)
        return tuple([scale * more if (more := c - least - s) > 0.0 else 0.0 for c, s in zip(cost, saved, strict=True)])

    def added_by_prompt(self, rows: int, prompt: int, unit: float) -> float:
        """What so many rows of a prompt add to a pass over `rows` others: the last of the above."""
        cost, whole = self._verify(rows + prompt), self._savings(rows + prompt)
        added = cost - self._verify(rows) - _saved(cost, whole, prompt, rows + prompt)
        return self._verify_factor / unit * max(0.0, added)

    def observe(self, shape: StepShape, times: PhaseTimes) -> None:
        """Learn from a measured step. Times that are not finite, or phases that took no time, teach nothing."""
        measured = times.total
        if not (math.isfinite(measured) and measured > 0):
            return
        predicted = self.predict_phases(shape)
        self._observed += 1
        weight = 1 / min(self._observed, self.ERROR_WINDOW)
        self._error += weight * (abs(predicted.total / measured - 1) - self._error)

        if predicted.speculate > 0 and times.speculate > 0:
            self._draft_factor *= math.exp(self.RATE * self._surprise(times.speculate / predicted.speculate))
        if predicted.verify > 0 and times.verify > 0:
            surprise = self._surprise(times.verify / predicted.verify)
            self._verify_factor *= math.exp(self.RATE * surprise)
            self._verify.nudge(shape.rows, self.POINT_RATE * surprise, self.POINT_BOUND)
        # All that no curve predicts is overhead, an n-gram drafter's time too. It may be zero in the profile, so it is corrected
        # by differences instead of ratios, at most CLIP of the step at once.
        explained = (times.speculate if predicted.speculate > 0 else 0.0) + (times.verify if predicted.verify > 0 else 0.0)
        rest = measured - explained - predicted.overhead
        bound = self.CLIP * predicted.total
        self._overhead = max(self._overhead + self.RATE * min(max(rest, -bound), bound), 0.0)

    def _speculate(self, shape: StepShape) -> float:
        draft = self._draft
        seconds = self._draft_attention * shape.draft_context
        for rows in shape.draft_rows:
            seconds += draft(rows)
            draft = self._draft_next
        return self._draft_factor * seconds

    def _verify_of(self, shape: StepShape) -> float:
        return self._verify_seconds(shape.rows, shape.context, shape.prompt, bool(shape.draft_rows))

    def _verify_seconds(self, rows: int, context: int, prompt: int, drafted: bool) -> float:
        cost = self._verify(rows)
        if prompt:
            cost -= _saved(cost, self._savings(rows), prompt, rows)
        after = self._after_draft if drafted else 0.0
        return self._verify_factor * (cost + self._attention * context + after)

    def _surprise(self, ratio: float) -> float:
        return min(max(math.log(ratio), -self.CLIP), self.CLIP)


def _saved(cost: float, whole: float, prompt: int, rows: int) -> float:
    """What a pass of this cost saves where `prompt` of `rows` rows are a prompt's, if `whole` is saved where all but one are."""
    return min(whole, cost / 2) * min(1.0, prompt / max(1, rows - 1))


def _saved_by(costs: Sequence[float], wholes: Sequence[float], rows: int) -> list[float]:
    """What is saved, as above, beside `rows` rows where 0, 1, ... more are a prompt's: without a call for each."""
    others = max(rows, 1) - 1
    shares = [0.0, *[prompt / (others + prompt) for prompt in range(1, len(costs))]]
    return [(w if w < c / 2 else c / 2) * share for c, w, share in zip(costs, wholes, shares, strict=True)]


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
