"""Policies by name: all can be made, overrides reach them, and contradictions are refused."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from adaserve.errors import InvalidConfig
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import MAX_CHAIN, NAMES, Overrides, make_policy
from adaserve.policy.policy import Demand
from adaserve.tuning import TUNINGS, load_constants

CONSTANTS = Constants(verify_rows=256, draft_rows=192)
MADE = [name.replace("K", "4") for name in NAMES]
FREE = ("adaserve", "adaserve+", "throughput", "specinfer")


def share(name: str, decoding: int, prompt: int = 0, **overrides: int):
    return make_policy(name, CONSTANTS, Overrides(**overrides)).scheduling.share(Demand(decoding, prompt))


@pytest.mark.parametrize("name", MADE)
def test_every_name_makes_a_policy_of_that_name(name: str) -> None:
    assert make_policy(name, CONSTANTS).name == name


@pytest.mark.parametrize("name", ["", "spec", "spec:", "spec:K", "spec:0", f"spec:{MAX_CHAIN + 1}", "spec:4x", "Sarathi"])
def test_other_names_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidConfig, match=r"sarathi|1 <= K"):
        make_policy(name, CONSTANTS)


def test_parts_of_plus_are_left_out_by_name() -> None:
    """The name says what is left out, the rest stays, and the constants are those of the whole policy."""
    whole, chains = (make_policy(name, CONSTANTS) for name in ("adaserve+", "adaserve+:no-trees"))
    assert chains.name == "adaserve+:no-trees"
    assert (chains.coupled, chains.memory is None) == (whole.coupled, whole.memory is None) == (True, False)
    bare = make_policy("adaserve+:no-coupled,calibrated", CONSTANTS, Overrides(depth=2))
    assert (bare.coupled, bare.memory) == (False, None)
    assert bare.scheduling.deepest == 2
    with pytest.raises(InvalidConfig, match="no part 'speed'"):
        make_policy("adaserve+:no-speed", CONSTANTS)
    with pytest.raises(InvalidConfig, match="unknown policy"):
        make_policy("adaserve+:priced", CONSTANTS)


def test_a_tuning_for_plus_is_also_for_what_is_left_of_it(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    path.write_text('{"constants": {"verify_rows": 8, "draft_rows": 4}, "policies": {"adaserve+": {"prompt_rows": 77}}}')
    found = [load_constants(path, name).prompt_rows for name in ("adaserve+", "adaserve+:no-priced,trees", "adaserve")]
    assert found == [77, 77, Constants.prompt_rows]


@pytest.mark.parametrize("name", MADE)
def test_depth_and_width_are_followed_or_refused_but_never_ignored(name: str) -> None:
    fixed = Overrides(depth=5, width=2)
    if name in FREE:
        assert fixed.known_to(name) == fixed
        found = make_policy(name, CONSTANTS, fixed).scheduling.share(Demand(3, 0))
        assert (found.depth, found.width) == (5, 2)
    else:
        with pytest.raises(InvalidConfig, match=f"{name} .*--depth 5"):
            make_policy(name, CONSTANTS, fixed)
        assert make_policy(name, CONSTANTS, fixed.known_to(name)).name == name


def test_what_a_name_says_anyway_may_be_said_again() -> None:
    assert make_policy("spec:4", CONSTANTS, Overrides(depth=4, width=1)).scheduling.deepest == 4
    assert make_policy("continuous", CONSTANTS, Overrides(depth=0, width=3)).scheduling.deepest == 0
    with pytest.raises(InvalidConfig, match="--width 3"):
        make_policy("spec:4", CONSTANTS, Overrides(width=3))


def test_a_tree_larger_than_a_mask_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="16 x 4"):
        make_policy("specinfer", CONSTANTS, Overrides(depth=16, width=4))


def test_continuous_and_chains_compute_prompts_alone() -> None:
    for name, rows in (("continuous", 10), ("spec:4", 50), ("specinfer", 10 * (1 + 4 * 3))):
        assert not share(name, 10, prompt=1).decode
        assert share(name, 10).decode and share(name, 10).budget == rows


def test_a_budget_bounds_fixed_drafts() -> None:
    assert share("spec:4", 10, budget=30).budget == 30
    assert share("specinfer", 10, budget=30).budget == 30
    assert share("spec:4", 2, budget=30).budget == 10


@pytest.mark.parametrize("name", MADE)
def test_chunk_rows_bound_the_prompt_rows(name: str) -> None:
    """Beside requests that decode, or in steps of their own; only `adaserve`'s pipeline has another bound when nobody decodes."""
    assert 0 < share(name, 1, prompt=5000, chunk_rows=70).prompt_rows <= 70


@pytest.mark.parametrize("decoding", [0, 1, 10, 60])
def test_throughput_differs_from_adaserve_in_selection_alone(decoding: int) -> None:
    ours, theirs = make_policy("adaserve", CONSTANTS), make_policy("throughput", CONSTANTS)
    assert ours.scheduling == theirs.scheduling and ours.discipline == theirs.discipline
    assert type(ours.selection) is not type(theirs.selection)
    assert share("adaserve", decoding) == share("throughput", decoding)


def test_baselines_follow_their_constants_and_the_user_before_them() -> None:
    tuned = replace(CONSTANTS, token_budget=96, batched_tokens=700, level_quantum=5)
    assert make_policy("sarathi", tuned).scheduling.share(Demand(6, 500)).prompt_rows == 90
    assert make_policy("sarathi", tuned, Overrides(budget=64)).scheduling.share(Demand(6, 500)).prompt_rows == 58
    assert make_policy("sarathi", CONSTANTS).scheduling.share(Demand(0, 999)).prompt_rows == 2 * CONSTANTS.verify_rows
    for name in ("continuous", "spec:4", "specinfer", "priority", "vtc", "fastserve"):
        assert make_policy(name, tuned).scheduling.share(Demand(0, 999)).prompt_rows == 700
        assert make_policy(name, tuned, Overrides(chunk_rows=32)).scheduling.share(Demand(0, 999)).prompt_rows == 32


@pytest.mark.parametrize(
    "wrong",
    [{"token_budget": 1}, {"batched_tokens": 0}, {"level_quantum": 0}, {"level_patience": 0.0}, {"level_patience": math.nan}],
)
def test_constants_that_would_stop_a_baseline_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidConfig):
        replace(CONSTANTS, **wrong)


def test_a_tuning_file_may_say_something_else_for_one_policy(tmp_path: Path) -> None:
    file = tmp_path / "tuning.json"
    file.write_text('{"constants": {"verify_rows": 64, "draft_rows": 8}, "policies": {"sarathi": {"token_budget": 96}}}')
    assert load_constants(file, "adaserve") == Constants(64, 8)
    assert load_constants(file, "sarathi") == Constants(64, 8, token_budget=96)
    file.write_text('{"constants": {"verify_rows": 64, "draft_rows": 8}, "policies": {"sarathi": {"speed": 96}}}')
    with pytest.raises(InvalidConfig, match="speed"):
        load_constants(file, "sarathi")


@pytest.mark.parametrize("shipped", sorted(TUNINGS.glob("*.json")), ids=lambda path: path.stem)
@pytest.mark.parametrize("name", MADE)
def test_shipped_constants_make_every_policy(shipped: Path, name: str) -> None:
    assert make_policy(name, load_constants(shipped, name)).name == name
