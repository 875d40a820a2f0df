from dataclasses import replace
from pathlib import Path

import pytest

from adaserve.config import EngineConfig
from adaserve.errors import ModelNotFound
from adaserve.models.registry import KNOWN
from adaserve.pair import fingerprint, memory_path, pair_of, tuning_path
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import make_policy


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    (tmp_path / "target.gguf").write_bytes(b"target")
    (tmp_path / "draft.gguf").write_bytes(b"draft")
    return EngineConfig(str(tmp_path / "target.gguf"), draft=str(tmp_path / "draft.gguf"))


def test_a_known_model_brings_its_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADASERVE_CACHE", str(tmp_path))
    (tmp_path / KNOWN["demo"].file).write_bytes(b"model")
    draft = pair_of(EngineConfig("demo")).draft
    assert draft is not None and draft.path == KNOWN["demo"].draft


@pytest.mark.parametrize("draft", ["none", "ngram", None])
def test_a_model_without_a_draft_has_none(config: EngineConfig, draft: str | None) -> None:
    assert pair_of(replace(config, draft=draft)).draft is None


def test_a_draft_that_is_not_there_is_told(config: EngineConfig) -> None:
    with pytest.raises(ModelNotFound, match="nowhere"):
        pair_of(replace(config, draft="nowhere"))


def test_whatever_changes_step_times_changes_the_name(config: EngineConfig) -> None:
    """And so does a model that was written anew; what only a policy reads does not."""
    configs = [
        config,
        replace(config, draft="ngram"),
        replace(config, draft="none"),
        replace(config, draft_vocabulary=16),
        replace(config, dtype="float32"),
        replace(config, threads=1),
        replace(config, max_num_seqs=3),
        replace(config, tensor_parallel_size=2),
    ]
    names = {fingerprint(c, pair_of(c)) for c in configs}
    assert len(names) == len(configs)
    assert tuning_path(replace(config, policy="continuous", depth=2)) == tuning_path(config)
    Path(config.model).write_bytes(b"another target")
    assert fingerprint(config, pair_of(config)) not in names


def test_what_was_learned_of_other_drafts_is_kept_apart(config: EngineConfig) -> None:
    policy = make_policy("adaserve+", Constants(verify_rows=8, draft_rows=8))
    both = replace(config, draft=f"{config.draft}+ngram")
    configs = [config, both, replace(both, lookup="tenant")]
    assert len({memory_path(c, policy) for c in configs}) == len(configs)
