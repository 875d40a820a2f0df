"""Drafts as a user asks for them: a model with look-up beside it, coupled or not, and what was learned kept between starts."""

from dataclasses import replace
from pathlib import Path

import pytest

from adaserve.build import build_engine
from adaserve.config import EngineConfig
from adaserve.errors import InvalidConfig
from adaserve.kernels.native import cache_folder
from adaserve.llm import LLM
from adaserve.request import SamplingParams
from tests.server.tiny import write_model, write_profile

PROMPTS = ["def add(first, second):\n    return first + second\ndef add(first,", "The quick brown fox"]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineConfig:
    """The tiny model as its own draft, with a cache of its own, in which only the compiled kernels are everybody's."""
    kernels = cache_folder() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kernels").symlink_to(kernels.resolve())
    monkeypatch.setenv("ADASERVE_CACHE", str(tmp_path / "cache"))
    folder = write_model(tmp_path / "model")
    profile = write_profile(tmp_path / "profile.json")
    return EngineConfig(
        str(folder),
        f"{folder}+ngram",
        dtype="float64",
        device="cpu",
        threads=1,
        profile=str(profile),
        depth=3,
        width=2,
        max_num_seqs=4,
    )


def answers(config: EngineConfig, temperature: float) -> tuple[LLM, list[tuple[int, ...]]]:
    options = {name: value for name, value in vars(config).items() if name != "model"}
    llm = LLM(config.model, **options)
    sampling = SamplingParams(max_tokens=24, temperature=temperature, seed=7, ignore_eos=True)
    return llm, [one.outputs[0].token_ids for one in llm.generate(PROMPTS, sampling)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_drafts_give_the_answers_of_plain_decoding(config: EngineConfig, temperature: float) -> None:
    _, plain = answers(replace(config, draft="none", policy="continuous", depth=None, width=None), temperature)
    for draft, coupled in ((config.draft, True), (config.draft, False), (config.model, True), ("ngram", None)):
        _, found = answers(replace(config, draft=draft, coupled=coupled), temperature)
        assert found == plain


def test_a_draft_with_the_targets_weights_is_always_right_when_it_is_coupled(config: EngineConfig) -> None:
    """At temperature 1: each step gains all that it drafted and one more, where an uncoupled draft is refused now and then."""
    rates = []
    options = {"dtype": "float64", "device": "cpu", "threads": 1, "profile": config.profile}
    for coupled in (True, False):
        llm = LLM(config.model, draft=config.model, policy="adaserve", depth=3, width=1, budget=64, coupled=coupled, **options)
        result = llm.generate(PROMPTS[0], SamplingParams(max_tokens=41, temperature=1.0, seed=3, ignore_eos=True))[0]
        rates.append(result.outputs[0].result.accepted / result.outputs[0].result.steps)
    assert rates[0] == 3.0 and rates[1] < 2.5


def test_what_was_learned_is_kept_between_starts(config: EngineConfig, tmp_path: Path) -> None:
    """For adaserve+; a damaged file is told once, and ignored."""
    config = replace(config, policy="adaserve+")
    llm, _ = answers(config, 0.0)
    memory = llm.built.policy.memory
    assert memory is not None
    llm.close()
    learned = memory.remembered()
    (path,) = (tmp_path / "cache" / "learned").iterdir()
    lines: list[str] = []
    again = build_engine(config, lines.append)
    assert again.policy.memory is not None and again.policy.memory.remembered() == learned
    assert not any("no use" in line for line in lines)
    path.write_text(path.read_text()[:100])
    fresh = build_engine(config, lines.append)
    assert fresh.policy.memory is not None and fresh.policy.memory.remembered() != learned
    assert sum("no use" in line for line in lines) == 1


@pytest.mark.parametrize("draft", ["+ngram", "none+ngram", "ngram+ngram"])
def test_look_up_beside_nothing_is_refused(draft: str) -> None:
    with pytest.raises(InvalidConfig, match="names no model"):
        EngineConfig(draft=draft)
