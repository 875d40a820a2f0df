"""The models that a config names, and the files in the cache that hold what is known of them on this machine."""

import hashlib
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from adaserve.config import EngineConfig
from adaserve.kernels.native import native_status
from adaserve.models.registry import ModelSource, cache_folder, resolve, resolve_draft
from adaserve.policy.policy import Policy

MEASURES = 3
"""Of what a profile knows: counted up when something new is measured, so that profiles from before are measured anew."""


@dataclass(frozen=True)
class Pair:
    """A target and what drafts for it: a model, or None. Look-up, alone or beside a model, is the config's `looks_up`."""

    target: ModelSource
    draft: ModelSource | None


def pair_of(config: EngineConfig) -> Pair:
    """Find the models that a config names on disk. Raises ModelNotFound with advice."""
    target = resolve(config.model)
    if config.draft_model in ("none", "ngram"):
        return Pair(target, None)
    if config.draft_model is not None:
        return Pair(target, resolve_draft(config.draft_model))
    return Pair(target, resolve_draft(target.name) if target.draft is not None else None)


def profile_path(config: EngineConfig, pair: Pair) -> Path:
    """Where the step times of these models on this machine are."""
    return cache_folder() / "profiles" / f"{fingerprint(config, pair)}-{MEASURES}.json"


def tuning_path(config: EngineConfig) -> Path:
    """Where `adaserve tune` keeps what it found for these models on this machine."""
    return cache_folder() / "tuning" / f"{fingerprint(config, pair_of(config))}.json"


def memory_path(config: EngineConfig, policy: Policy) -> Path:
    """Where a policy keeps what it learned of these models, as they draft for it."""
    found = f"-ngram{'' if config.lookup == 'own' else f'-{config.lookup}'}" if config.looks_up else ""
    drafts = f"{'-coupled' if policy.coupled else ''}{found}"
    return cache_folder() / "learned" / f"{fingerprint(config, pair_of(config))}{drafts}.json"


def fingerprint(config: EngineConfig, pair: Pair) -> str:
    """A name for this model pair on this machine: whatever changes step times changes it."""
    draft = "ngram" if config.draft_model == "ngram" else None
    facts = [
        _stamp(pair.target.path),
        draft if pair.draft is None else _stamp(pair.draft.path),
        config.draft_vocabulary,
        config.dtype,
        config.device,
        config.threads,
        config.max_num_seqs,
        platform.processor() or platform.machine(),
        os.cpu_count(),
        torch.__version__,
        native_status(),
        *([config.tensor_parallel_size] if config.tensor_parallel_size > 1 else []),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _stamp(path: Path) -> list[list[object]]:
    """What changes when a model's files do."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
