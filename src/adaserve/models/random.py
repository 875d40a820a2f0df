"""Tiny random models, for tests and for measurements that need a shape but no sense."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adaserve.models.config import FAMILIES, ModelConfig
from adaserve.models.rope import Rope
from adaserve.models.weights import EMBEDDING, HEAD, expected_shapes


def tiny_config(family: str = "llama", **changes: Any) -> ModelConfig:
    """The config of a two-layer model that runs in well under a millisecond; `changes` replace fields of ModelConfig."""
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    fields: dict[str, Any] = {
        "family": family,
        "layers": 2,
        "hidden": 32,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "intermediate": 48,
        "vocab_size": 100,
        "eps": 1e-6,
        "rope": Rope(),
        "max_positions": 1024,
        "qkv_bias": family == "qwen2",
        "qk_norm": family == "qwen3",
    }
    return ModelConfig(**(fields | changes))


def random_weights(config: ModelConfig, seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    """Draw all tensors of a model, in float64.

    scale: standard deviation of the logits, roughly. Around 1 the next token is nearly uniform, at 4 it is mostly decided.
    Layers keep the variance of their input, so every layer and the context have their say.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in expected_shapes(config).items():
        draw = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name == HEAD or (name == EMBEDDING and config.tie_embeddings):
            weights[name] = draw * scale * config.hidden**-0.5
        elif name == EMBEDDING:
            weights[name] = draw
        elif len(shape) == 2:
            weights[name] = draw * shape[1] ** -0.5
        elif name.endswith("bias"):
            weights[name] = draw * 0.1
        else:
            weights[name] = 1 + draw * 0.1
    return weights


def noisy_copy(weights: Mapping[str, Tensor], noise: float, seed: int) -> dict[str, Tensor]:
    """The weights with Gaussian noise of `noise` times each tensor's own standard deviation: a draft that mostly agrees."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + noise * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        for name, tensor in weights.items()
    }
