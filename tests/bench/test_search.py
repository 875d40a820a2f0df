"""The coordinate search: it finds the peak of a made-up machine, climbs the load with its incumbent, keeps nothing worse."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.bench.search import AXES, axes_of, climb
from adaserve.bench.tune import Score
from adaserve.errors import InvalidConfig
from adaserve.policy.adaptive import Constants

START = Constants(verify_rows=64, draft_rows=64)
TREES = {"verify_rows": (32, 64, 128, 256), "prompt_rows": (16, 32, 64, 128)}


def machine(best_rows: int, best_prompt: int):
    """Attains everything up to a load that falls with the distance from the best setting, and nothing but a slope beyond it."""

    def score_at(constants: Constants, load: float, least: float) -> Score:
        bits = abs(constants.verify_rows.bit_length() - best_rows.bit_length())
        bits += abs(constants.prompt_rows.bit_length() - best_prompt.bit_length())
        holds = 8.0 / 1.5**bits
        attained = min(1.0, holds / load)
        return Score(attained if attained >= least else 0.0, load)

    return score_at


@given(st.sampled_from(TREES["verify_rows"]), st.sampled_from(TREES["prompt_rows"]), st.floats(0.5, 20))
def test_finds_the_peak_whatever_load_it_begins_at(rows: int, prompt: int, load: float) -> None:
    kept = [trial for trial in climb(START, TREES, machine(rows, prompt), 0.95, load, rounds=3) if trial.kept]
    found = kept[-1].constants if kept else START
    assert (found.verify_rows, found.prompt_rows) == (rows, prompt)


@given(st.sampled_from(TREES["verify_rows"]), st.sampled_from(TREES["prompt_rows"]))
def test_what_is_kept_was_better_at_the_same_load(rows: int, prompt: int) -> None:
    score_at = machine(rows, prompt)
    best = START
    for trial in climb(START, TREES, score_at, 0.95):
        assert trial.score.attainment in (0.0, score_at(trial.constants, trial.load, 0.0).attainment)
        if trial.kept and trial.constants != best:
            assert score_at(best, trial.load, 0.0) < trial.score
            best = trial.constants


def test_skips_combinations_that_make_no_sense() -> None:
    tried = [t.constants for t in climb(replace(START, depth_max=1), {"depth_min": (0, 1, 2)}, machine(64, 32), 0.95)]
    assert {c.depth_min for c in tried} == {0, 1}


def test_a_load_that_nobody_can_serve_ends_the_search() -> None:
    trials = list(climb(START, {}, lambda constants, load, least: Score(0.0, 0.0), 0.95))
    assert trials[-1].load < 2e-3


@pytest.mark.parametrize("policy", [*(name for name in AXES if name != "spec"), "spec:4"])
def test_every_axis_is_a_field_and_its_values_are_valid(policy: str) -> None:
    for name, values in axes_of(policy).items():
        for value in values:
            replace(START, **{name: value})


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="sarathi"):
        axes_of("nobody")
