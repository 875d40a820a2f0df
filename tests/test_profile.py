"""The profile: what its curves say of requests that share, its file, and the default budgets."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.errors import InvalidConfig
from adaserve.profile import BASELINE_CONTEXT, Profile, budget_from
from tests.profiles import STAIRS, curves


def test_requests_that_share_are_as_slow_as_the_pass_over_all_of_them() -> None:
    """The baseline, what their rows add to one row's pass, and what their contexts add to one's."""
    profile = replace(STAIRS, attention_ms_per_1000_context_tokens=1.0)
    assert profile.shared_ms(1) == profile.baseline_ms_per_token
    assert profile.shared_ms(64) == pytest.approx(17.0 + 18.0 - 16.0 + 63 * 0.001 * BASELINE_CONTEXT)


# The profile's file.


@given(
    st.builds(
        Profile,
        name=st.text(max_size=10),
        verify_ms_by_rows=curves,
        attention_ms_per_1000_context_tokens=st.floats(0, 100),
        draft_step_ms_by_rows=curves,
        draft_next_ms_by_rows=st.one_of(st.just({}), curves),
        prompt_saves_ms_by_rows=st.one_of(st.just({}), curves, st.just({8: 0.0})),
        after_draft_ms=st.floats(0, 100),
        draft_attention_ms_per_1000_context_tokens=st.floats(0, 100),
        step_overhead_ms=st.floats(0, 100),
        residual_cv=st.floats(0, 1),
        baseline_ms_per_token=st.floats(0.01, 1000),
    )
)
def test_a_profile_survives_json(profile: Profile) -> None:
    assert Profile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "stairs.json"
    STAIRS.save(path)
    assert Profile.load(path) == STAIRS
    assert [p.name for p in tmp_path.iterdir()] == ["stairs.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verify_ms_by_rows": None}, "lacks verify_ms_by_rows"),
        ({"baseline_ms_per_token": None}, "lacks baseline_ms_per_token"),
        ({"verify_ms_by_rows": {}}, "is empty"),
        ({"verify_ms_by_rows": [1, 2]}, "must map"),
        ({"verify_ms_by_rows": {"a few": 1.0}}, "whole numbers"),
        ({"verify_ms_by_rows": {"0": 1.0}}, "positive number of rows"),
        ({"verify_ms_by_rows": {"1": 0.0}}, "more than 0"),
        ({"verify_ms_by_rows": {"1": float("nan")}}, "must be a number"),
        ({"verify_ms_by_rows": {"1": 10**400}}, "must be a number"),
        ({"draft_step_ms_by_rows": {"1": "fast"}}, "must be a number"),
        ({"draft_next_ms_by_rows": {"1": 0.0}}, "more than 0"),
        ({"draft_next_ms_by_rows": 0.4}, "must map"),
        ({"prompt_saves_ms_by_rows": {"8": -0.1}}, "0 or more"),
        ({"after_draft_ms": "long"}, "must be a number"),
        ({"step_overhead_ms": -1}, "0 or more"),
        ({"step_overhead_ms": True}, "must be a number"),
        ({"residual_cv": float("inf")}, "must be a number"),
        ({"baseline_ms_per_token": 0}, "more than 0"),
    ],
)
def test_a_senseless_profile_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    data = {key: value for key, value in {**STAIRS.to_json(), **change}.items() if value is not None}
    with pytest.raises(InvalidConfig, match=message) as error:
        Profile.from_json(data)
    assert "\n" not in str(error.value)


def test_a_profile_from_before_is_read() -> None:
    """It tells no further draft passes apart, nor a prompt's rows, nor passes after a draft."""
    data = STAIRS.to_json()
    assert data.pop("draft_next_ms_by_rows") == data.pop("prompt_saves_ms_by_rows") == {}
    assert data.pop("after_draft_ms") == 0.0
    assert Profile.from_json(data) == STAIRS


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[1, 2]", '"profile"', "\x00"])
def test_a_broken_profile_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(InvalidConfig):
        Profile.load(path)
    with pytest.raises(InvalidConfig, match="cannot read"):
        Profile.load(tmp_path / "missing.json")


# Budgets.

stretches = st.floats(1.0, 10.0)


@given(curves, st.integers(1, 64), stretches)
def test_a_budget_is_affordable_and_leaves_room_for_every_root(curve: dict[int, float], requests: int, stretch: float) -> None:
    budget = budget_from(replace(STAIRS, verify_ms_by_rows=curve), requests, stretch).verify
    assert budget >= requests
    assert budget == requests or curve[budget] <= stretch * curve[min(curve)]


@given(curves, stretches)
def test_no_affordable_point_is_cheaper_per_row(curve: dict[int, float], stretch: float) -> None:
    budget = budget_from(replace(STAIRS, verify_ms_by_rows=curve), 1, stretch).verify
    affordable = {r: c for r, c in curve.items() if c <= stretch * curve[min(curve)]}
    assert budget in affordable
    assert affordable[budget] / budget <= min(c / r for r, c in affordable.items())


@given(curves, stretches, stretches)
def test_a_larger_stretch_never_shrinks_a_budget(curve: dict[int, float], one: float, other: float) -> None:
    profile = replace(STAIRS, verify_ms_by_rows=curve, draft_step_ms_by_rows=curve)
    less, more = (budget_from(profile, 1, stretch, stretch) for stretch in sorted((one, other)))
    assert less.verify <= more.verify
    assert less.draft <= more.draft


def test_budgets_end_at_the_edge_of_a_stair() -> None:
    assert budget_from(STAIRS, 8, verify_stretch=1.7).verify == 128  # 129 would pay for a whole stair
    assert budget_from(STAIRS, 8, verify_stretch=2.0).verify == 256
    assert budget_from(STAIRS, 8).draft == 192


def test_a_budget_without_sense_is_refused() -> None:
    for requests, stretch in ((0, 2.0), (1, 0.5), (1, math.nan)):
        with pytest.raises(InvalidConfig):
            budget_from(STAIRS, requests, stretch)
