"""How long a step will take: a LatencyModel starts from a measured Profile and corrects itself.

    verify    = stairs(rows) - stairs of savings(rows) * share of prompt rows + attention * context [+ after a draft]
    speculate = draft stairs(rows) of its first pass + draft stairs(rows) of each further one + draft attention * draft context
    overhead  = everything else (scheduling, selection, commit)

The `stairs` are curves of time by rows: flat while the weights' way through memory dominates, then climbing in steps of the
machine's tile size. Seconds inside; the profile is in milliseconds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaserve.profile import Profile
from adaserve.stairs import Stairs
from adaserve.step import PhaseTimes, StepShape


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
        self._verify = Stairs({rows: cost / 1e3 for rows, cost in profile.verify_ms_by_rows.items()})
        self._draft = Stairs({rows: cost / 1e3 for rows, cost in profile.draft_step_ms_by_rows.items()})
        further = profile.draft_next_ms_by_rows or profile.draft_step_ms_by_rows
        self._draft_next = Stairs({rows: cost / 1e3 for rows, cost in further.items()})
        self._attention = profile.attention_ms_per_1000_context_tokens / 1e6  # s per token
        self._savings = Stairs({rows: saved / 1e3 for rows, saved in profile.prompt_saves_ms_by_rows.items()})
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

    def added(self, rows: int, more: int, unit: float) -> float:
        """What `more` further rows add to a pass of the target over `rows` of them, in units of `unit` seconds."""
        return self._verify_factor / unit * (self._verify(rows + more) - self._verify(rows))

    def prices(self, rows: int, most: int, unit: float) -> tuple[float, ...]:
        """The same of 0, 1, ... `most` further rows, in plain numbers: there are few of them."""
        time, least, scale = self._verify, self._verify(rows), self._verify_factor / unit
        return tuple([scale * (time(rows + more) - least) for more in range(most + 1)])

    def added_by_prompts(self, rows: int, most: int, unit: float) -> NDArray[np.float64]:
        """The same where the further rows are a prompt's: [most + 1]."""
        cost = self._verify.run(rows, most)
        saved = _saved_by(cost, self._savings.run(rows, most), rows)
        return self._verify_factor / unit * np.maximum(cost - cost[0] - saved, 0.0)

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


def _saved_by(costs: NDArray[np.float64], wholes: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """What is saved, as above, beside `rows` rows where 0, 1, ... more are a prompt's: without a call for each."""
    prompt = np.arange(len(costs))
    return np.minimum(wholes, costs / 2) * (prompt / np.maximum(max(rows, 1) - 1 + prompt, 1))
