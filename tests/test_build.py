"""What is wrong with a config shows before anything slow begins."""

from dataclasses import replace
from pathlib import Path

import pytest

from adaserve.build import load_parts
from adaserve.config import EngineConfig
from adaserve.errors import InvalidConfig
from tests.server.tiny import write_model, write_profile


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    profile = write_profile(tmp_path / "profile.json")
    return EngineConfig(str(write_model(tmp_path / "model")), "none", dtype="float64", device="cpu", profile=str(profile))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (EngineConfig(policy="nonsense"), "unknown policy"),
        (EngineConfig(policy="continuous", depth=2), "depth"),
        (EngineConfig(tuning="nowhere.json"), "nowhere.json"),
        (EngineConfig(profile="nowhere.json"), "nowhere.json"),
        (EngineConfig(threads=1_000_000), "more than this machine's"),
    ],
    ids=["policy", "override", "tuning", "profile", "threads"],
)
def test_before_a_model_is_loaded(wrong: EngineConfig, told: str, config: EngineConfig) -> None:
    said: list[str] = []
    wrong = replace(
        wrong, model=config.model, draft="none", device="cpu", dtype="float64", profile=wrong.profile or config.profile
    )
    with pytest.raises(InvalidConfig, match=told):
        load_parts(wrong, said.append)
    assert said == []


def test_a_cache_too_small_to_serve_says_what_to_raise(config: EngineConfig) -> None:
    with pytest.raises(InvalidConfig, match="raise --kv-tokens"):
        load_parts(replace(config, kv_tokens=1), lambda line: None)
    with pytest.raises(InvalidConfig, match="max_model_len must be at least"):
        load_parts(replace(config, max_model_len=3), lambda line: None)
