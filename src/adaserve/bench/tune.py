"""The grid search for a policy's constants (the paper's B1, B2, c1, c2 and n_max) on a real engine.

Successive halving: all candidates replay a short piece of the workload, the better half a piece twice as long, and so on until
one is left. A candidate's score is the share of requests that attain their SLO, goodput breaks ties. Candidates of one round see
the same requests, so they differ in nothing but the constants; the machine's drift is spread by alternating their order.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from adaserve.bench.replay import Replay, replay
from adaserve.engine import Engine
from adaserve.metrics import summarize
from adaserve.policy.adaptive import Constants
from adaserve.profile import Profile
from adaserve.request import Request


@dataclass(frozen=True)
class Score:
    """How a candidate did in one round; compares by attainment, then goodput."""

    attainment: float
    goodput: float

    def __lt__(self, other: "Score") -> bool:
        return (self.attainment, self.goodput) < (other.attainment, other.goodput)


@dataclass(frozen=True)
class Trial:
    """One candidate in one round."""

    round: int
    constants: Constants
    score: Score


def grid(base: Constants, profile: Profile) -> list[Constants]:
    """All combinations that are worth a look on this machine; `base` comes first.

    Budgets are rows at which the target's pass costs up to 1.5, 2, 3, 4 and 6 times a one-row pass.
    """
    one = next(iter(profile.verify_ms_by_rows.values()))
    curve = profile.verify_ms_by_rows.items()
    budgets = sorted({max(rows for rows, cost in curve if cost <= stretch * one) for stretch in (1.5, 2, 3, 4, 6)})
    found = [base]
    shapes = ((1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1))
    for rows, draft_rows, c1, c2, (depth, width), n_max, prompt_rows in itertools.product(
        budgets, (0, 4, 8, 16), (0, 2, 4), (0, 1), shapes, (1, 2, 4, 8), (16, 32, 64, 128, 256)
    ):
        candidate = replace(
            base,
            verify_rows=rows,
            draft_rows=draft_rows,
            depth_offset=c1,
            width_offset=c2,
            depth_max=depth,
            width_max=width,
            per_request=n_max,
            prompt_rows=prompt_rows,
        )
        if candidate != base and n_max <= depth * width:
            found.append(candidate)
    return found


def sample(candidates: Sequence[Constants], count: int, rng: random.Random) -> list[Constants]:
    """The first candidate and a random choice of the others, `count` in all."""
    first, *rest = candidates
    return [first, *rng.sample(rest, min(count - 1, len(rest)))]


def halving(
    candidates: Sequence[Constants],
    make_engine: Callable[[Constants], Engine],
    workload: Callable[[int, float], Sequence[tuple[float, Request]]],
    seconds: float,
    on_trial: Callable[[Trial, int], None],
) -> tuple[Constants, list[Trial]]:
    """Search; returns the best candidate and every trial.

    workload(round, seconds) gives that round's timed requests; on_trial(trial, candidates left) is called after each replay.
    """
    alive = list(candidates)
    trials: list[Trial] = []
    for number in itertools.count():
        scored: list[Trial] = []
        timed = workload(number, seconds * 2**number)
        for constants in alive if number % 2 == 0 else reversed(alive):
            trial = Trial(number, constants, score(replay(make_engine(constants), timed)))
            scored.append(trial)
            on_trial(trial, len(alive))
        trials += scored
        scored.sort(key=lambda t: t.score, reverse=True)
        alive = [t.constants for t in scored[: max(1, len(scored) // 2)]]
        if len(alive) == 1:
            return alive[0], trials
    raise AssertionError("unreachable: every round halves the candidates")


def score(played: Replay) -> Score:
    """Judge a replay."""
    report = summarize("tune", played.results, steps=played.totals)
    return Score(report.slo_attainment or 0.0, report.goodput_tokens_per_s or 0.0)
