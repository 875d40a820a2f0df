"""Coordinate search for a policy's constants: one axis after the other, at the load where the best found so far begins to fail.

Made for simulated machines, where a trial is deterministic and cheap; bench/tune.py searches on real ones. The load climbs with
the incumbent, so that trials always happen where the goal is in reach but not yet certain:

    load     lowest on the grid at which the incumbent attains less than the goal
    better   attains more at that load, goodput breaking ties; then the load is raised until it fails again
    end      a whole round over all axes brought nothing, or `rounds` are over
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adaserve.bench.capacity import grid_index, grid_speed
from adaserve.bench.tune import Score
from adaserve.errors import InvalidConfig
from adaserve.policy.adaptive import Constants

ScoreAt = Callable[[Constants, float, float], Score]
"""score_at(constants, load, least) plays the workload at a load, in whatever unit; the same arguments, the same answer.

Once it is certain that not even `least` will attain, any score below that will do as an answer."""

Axes = Mapping[str, Sequence[Any]]
"""Values to try by the field of Constants that they are of, in the order of the search."""

TREES: Axes = {
    "width_max": (1, 2, 3, 4),
    "depth_max": (2, 3, 4, 5, 6, 8),
    "prompt_rows": (32, 64, 96, 128, 192, 256, 384, 512),
    "verify_rows": (48, 64, 96, 128, 160, 192, 256, 320, 384),
    "depth_offset": (0, 4, 8, 16),
    "draft_rows": (48, 96, 192, 384),
    "width_offset": (0, 1),
    "depth_min": (0, 1, 2),
}
PROMPTS_ALONE: Axes = {"batched_tokens": (256, 512, 1024, 2048, 4096)}
AXES: Mapping[str, Axes] = {
    "adaserve": {"per_request": (1, 2, 3, 4, 6, 8, 12), **TREES},
    "throughput": TREES,
    "sarathi": {"token_budget": (64, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024)},
    "continuous": PROMPTS_ALONE,
    "spec": PROMPTS_ALONE,
    "specinfer": {  # of width 1 it would be `spec`
        "tree_width": (2, 3, 4),
        "tree_depth": (2, 3, 4, 5, 6, 8),
        **PROMPTS_ALONE,
    },
    "priority": PROMPTS_ALONE,
    "vtc": PROMPTS_ALONE,
    "fastserve": {**PROMPTS_ALONE, "level_quantum": (4, 8, 16, 32, 64, 128), "level_patience": (0.5, 1.0, 2.0, 5.0)},
}
"""What there is to tune of each policy; `spec` stands for every length of chain."""


@dataclass(frozen=True)
class Attempt:
    """One setting tried at one load; `kept`: it became the incumbent."""

    load: float
    constants: Constants
    score: Score
    kept: bool


def axes_of(policy: str) -> Axes:
    """What there is to tune of a policy. Raises InvalidConfig for an unknown one."""
    family = policy.partition(":")[0]
    if family not in AXES:
        raise InvalidConfig(f"nothing is known to tune of {policy!r}, only of {', '.join(AXES)}")
    return AXES[family]


def climb(start: Constants, axes: Axes, score_at: ScoreAt, goal: float, load: float = 1.0, rounds: int = 3) -> Iterator[Attempt]:
    """Search from `start`; yields every trial, the incumbent's own climbs included. The last one kept is the best.

    goal: the attainment whose load is to be maximised. load: where to look first.
    """
    best, place = start, grid_index(load)
    score = score_at(best, grid_speed(place), 0.0)
    while score.attainment < goal and place > grid_index(1e-3):
        yield Attempt(grid_speed(place), best, score, True)
        place -= 1
        score = score_at(best, grid_speed(place), 0.0)
    for _ in range(rounds):
        before = best
        for name, values in axes.items():
            for value in values:
                while score.attainment >= goal:  # the incumbent has outgrown the load
                    yield Attempt(grid_speed(place), best, score, True)
                    place += 1
                    score = score_at(best, grid_speed(place), 0.0)
                if value == getattr(best, name):
                    continue
                try:
                    candidate = replace(best, **{name: value})
                except InvalidConfig:  # a combination that makes no sense, such as D_min above D_max
                    continue
                found = score_at(candidate, grid_speed(place), score.attainment)
                kept = score < found
                yield Attempt(grid_speed(place), candidate, found, kept)
                if kept:
                    best, score = candidate, found
        if best == before:
            break
