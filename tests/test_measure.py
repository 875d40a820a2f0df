"""Measuring a machine and searching constants, with a real executor on tiny models; nothing here asserts a duration."""

import random
from pathlib import Path

from adaserve.assembly import Sizes, make_executor
from adaserve.bench.tune import Score, Trial, grid, halving, sample
from adaserve.clock import WallClock
from adaserve.executor.profiler import EDGES
from adaserve.measure import measure_profile
from adaserve.profile import Profile
from adaserve.request import SamplingParams
from adaserve.tree import MAX_NODES
from tests.engines import PROFILE, SMALL, Setting, engine_for, random_requests, tiny_models

SIZES = Sizes(slots=4, length=200, pages=200, page_size=4)


def test_a_profile_is_measured_with_both_models(tmp_path: Path) -> None:
    """Every point is a positive time, up to the rows that the slots can hold; the file gives the same profile back."""
    models = tiny_models()
    lines: list[str] = []
    profile = measure_profile(models, SIZES, make_executor(models, SIZES, WallClock()), "tiny", lines.append)
    assert list(profile.verify_ms_by_rows)[:4] == [1, 2, 4, 8]
    assert max(profile.verify_ms_by_rows) <= SIZES.slots * (1 + MAX_NODES)
    assert list(profile.draft_step_ms_by_rows) == list(profile.draft_next_ms_by_rows) == [1, 2, 4]
    assert profile.residual_cv > 0 and profile.step_overhead_ms > 0
    assert any(line.startswith("baseline") for line in lines)
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile


def test_without_a_draft_there_is_no_draft_curve() -> None:
    """A target alone is measured alone."""
    models = tiny_models()
    alone = type(models)(models.target)
    profile = measure_profile(alone, SIZES, make_executor(alone, SIZES, WallClock()), "tiny", lambda line: None)
    assert (
        profile.draft_step_ms_by_rows == profile.draft_next_ms_by_rows == {}
        and profile.draft_attention_ms_per_1000_context_tokens == 0
    )


def test_the_search_tries_the_present_constants_and_ends_with_one() -> None:
    """Rounds halve the candidates, run twice as long, and the winner of the last round is what comes out."""
    models, rng = tiny_models(), random.Random(0)
    candidates = sample(grid(SMALL, PROFILE), 4, rng)
    assert candidates[0] == SMALL and len(set(candidates)) == 4
    requests = random_requests(rng, 6, [SamplingParams(max_tokens=6, temperature=0.0)])
    asked: list[float] = []
    seen: list[Trial] = []

    def workload(number: int, seconds: float) -> list[tuple[float, object]]:
        asked.append(seconds)
        return [(0.0, r) for r in requests]

    best, trials = halving(
        candidates,
        lambda constants: engine_for(models, Setting("adaserve", constants=constants)),
        workload,
        seconds=1.0,
        on_trial=lambda trial, left: seen.append(trial),
    )
    assert asked == [1.0, 2.0] and [t.round for t in trials] == [0, 0, 0, 0, 1, 1]
    assert sorted(map(id, seen)) == sorted(map(id, trials))
    last = [t for t in trials if t.round == 1]
    assert best == max(last, key=lambda t: t.score).constants
    assert all(0 <= t.score.attainment <= 1 and t.score.goodput >= 0 for t in trials)


def test_scores_compare_attainment_first() -> None:
    """Goodput only breaks ties."""
    assert Score(0.5, 900.0) < Score(0.6, 1.0) and Score(0.5, 1.0) < Score(0.5, 2.0)


def test_where_passes_come_in_few_sizes_more_of_them_are_timed() -> None:
    """A row after an edge costs as much as dozens: a line over the edge would hide that."""
    models = tiny_models()
    padded = make_executor(models, SIZES, WallClock(), padded=True)
    profile = measure_profile(models, SIZES, padded, "tiny", lambda line: None)
    assert profile.padded
    assert {rows for rows in EDGES if rows <= SIZES.slots * (1 + MAX_NODES)} < profile.verify_ms_by_rows.keys()
