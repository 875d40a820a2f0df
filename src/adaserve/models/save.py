"""Writes a model as a folder in Hugging Face layout, a shard at a time, so that it need not fit into memory."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from adaserve.errors import InvalidConfig
from adaserve.models.config import ModelConfig
from adaserve.models.rope import FrequencyFactors, LinearScaling, Llama3Scaling, Rope

SHARD_BYTES = 4 << 30
"""Tensors are collected until a shard has about this size."""

_ARCHITECTURE = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def save_folder(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    folder: Path,
    progress: Callable[[str], None],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write config.json and sharded safetensors of the weights, which are asked for one at a time.

    Raises InvalidConfig for a config that config.json cannot express, and for a folder that cannot be written.
    """
    description = huggingface_fields(config)
    shards: list[list[str]] = []
    total = size = 0
    shard: dict[str, Tensor] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        for name in weights:
            tensor = weights[name].cpu().contiguous()
            if shard and size + tensor.nbytes > shard_bytes:
                shards.append(_write(shard, folder, len(shards), progress))
                shard, size = {}, 0
            shard[name] = tensor
            size += tensor.nbytes
            total += tensor.nbytes
        shards.append(_write(shard, folder, len(shards), progress))
        place = {name: _name(number) for number, names in enumerate(shards) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": place}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidConfig(f"cannot write {folder}: {error.strerror or error}") from error


def huggingface_fields(config: ModelConfig) -> dict[str, object]:
    """What config.json says of this model; `ModelConfig.from_huggingface` reads it back. Raises InvalidConfig if it cannot."""
    if config.family != "qwen2" and config.qkv_bias != config.output_bias:
        raise InvalidConfig("a config.json has one flag for the biases of attention; this model has some of them only")
    return {
        "architectures": [f"{_ARCHITECTURE[config.family]}ForCausalLM"],
        "model_type": config.family,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.output_bias or (config.qkv_bias and config.family != "qwen2"),
        "mlp_bias": config.mlp_bias,
        "hidden_act": "silu",
        "eos_token_id": list(config.eos_ids) or None,
        "sliding_window": None,
        "rope_theta": config.rope.theta,
        "rope_scaling": _scaling(config.rope),
    }


def _scaling(rope: Rope) -> dict[str, object] | None:
    match rope.scaling:
        case None:
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3Scaling() as scaling:
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original,
            }
        case FrequencyFactors():
            raise InvalidConfig("a config.json cannot hold rotary frequency factors, as this GGUF file has them")


def _write(shard: dict[str, Tensor], folder: Path, number: int, progress: Callable[[str], None]) -> list[str]:
    save_file(shard, folder / _name(number), metadata={"format": "pt"})
    progress(f"wrote {folder / _name(number)}")
    return list(shard)


def _name(number: int) -> str:
    return f"model-{number + 1:05d}.safetensors"
