"""Weights and config from a GGUF file, under Hugging Face names and in Hugging Face layout."""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adaserve.errors import InvalidModel
from adaserve.kernels.quantized import QuantizedWeight
from adaserve.models.config import ModelConfig
from adaserve.models.gguf_blocks import read_blocks
from adaserve.models.gguf_header import GgufHeader, TensorInfo, Value
from adaserve.models.rope import FrequencyFactors, Rope

_ARCHITECTURES = ("llama", "qwen2", "qwen3")

_PLAIN = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FACTORS = "rope_freqs.weight"
_UNQUANTISED = {0: "<f4", 1: "<f2", 28: "<f8"}
"""GGML's numbers of plain float types; numpy has no bfloat16, which the gguf package converts."""


class GgufWeights(Mapping[str, Tensor]):
    """The tensors of a GGUF file, dequantised to float32 when asked for."""

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self._infos = {_huggingface_name(name): info for name, info in header.tensors.items() if name != _FACTORS}
        self._data = np.memmap(header.path, mode="r")  # [file size] uint8
        self._permuted = header.metadata.get("general.architecture") == "llama"

    def __getitem__(self, name: str) -> Tensor:
        return self._order(name)(_dequantise(self._header.path, self._data, self._infos[name]))

    def blocks(self, name: str) -> QuantizedWeight | None:
        """A matrix as the file holds it, where it holds blocks that kernels take: Q4_0, Q4_1 or Q8_0."""
        read = read_blocks(self._data, self._infos[name])
        return None if read is None else read.over_rows(self._order(name))

    def _order(self, name: str) -> Callable[[Tensor], Tensor]:
        """What brings the rows of a tensor into Hugging Face's order."""
        if self._permuted and ".q_proj." in name:
            return functools.partial(_unpermute, heads=_integer(self._header, "attention.head_count"))
        if self._permuted and ".k_proj." in name:
            return functools.partial(_unpermute, heads=kv_heads(self._header))
        return lambda tensor: tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)


def gguf_config(header: GgufHeader) -> ModelConfig:
    """Read the config from a header's metadata; raises InvalidModel for another architecture or missing numbers."""
    architecture = header.metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        supported = ", ".join(_ARCHITECTURES)
        raise InvalidModel(f"{header.path}: GGUF architecture {architecture!r} is not supported; these are: {supported}")
    if _lookup(header, "expert_count", 0):
        raise InvalidModel(f"{header.path}: mixtures of experts are not supported")
    heads = _integer(header, "attention.head_count")
    hidden = _integer(header, "embedding_length")
    head_dim = int(_number(header, "attention.key_length", hidden // heads))
    if int(_number(header, "rope.dimension_count", head_dim)) != head_dim:
        raise InvalidModel(f"{header.path}: partial rotary embedding is not supported")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise InvalidModel(f"{header.path}: tensor token_embd.weight missing")
    eos = [header.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot")]
    has = header.tensors.__contains__
    window = int(_number(header, "attention.sliding_window", 0))
    data: dict[str, object] = {
        "model_type": "mistral" if window and architecture == "llama" else architecture,
        "num_hidden_layers": _integer(header, "block_count"),
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads(header),
        "head_dim": head_dim,
        "intermediate_size": _integer(header, "feed_forward_length"),
        "vocab_size": embedding.shape[0],
        "rms_norm_eps": _number(header, "attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": _integer(header, "context_length"),
        "sliding_window": window or None,
        "use_sliding_window": window > 0,
        "tie_word_embeddings": not has("output.weight"),
        "attention_bias": has("blk.0.attn_q.bias"),
        "mlp_bias": has("blk.0.ffn_gate.bias"),
        "rope_theta": _number(header, "rope.freq_base", 10000.0),
        "rope_scaling": _scaling(header),
        "eos_token_id": [i for i in eos if isinstance(i, int)],
    }
    config = ModelConfig.from_huggingface(data, str(header.path))
    # One flag of a config.json stands for two biases here, and Llama 3's scaling comes as finished divisors.
    return replace(config, output_bias=has("blk.0.attn_output.bias"), rope=_with_factors(header, config))


def kv_heads(header: GgufHeader) -> int:
    """How many key-value heads the model has."""
    return int(_number(header, "attention.head_count_kv", _integer(header, "attention.head_count")))


def _scaling(header: GgufHeader) -> dict[str, object] | None:
    kind = _lookup(header, "rope.scaling.type", "none")
    if kind == "none":
        return None
    return {"rope_type": kind, "factor": _number(header, "rope.scaling.factor", 1.0)}


def _with_factors(header: GgufHeader, config: ModelConfig) -> Rope:
    info = header.tensors.get(_FACTORS)
    if info is None:
        return config.rope
    factors = _dequantise(header.path, np.memmap(header.path, mode="r"), info).double()  # [hd / 2]
    if factors.shape != (config.head_dim // 2,) or not bool((factors > 0).all() and factors.isfinite().all()):
        raise InvalidModel(f"{header.path}: {_FACTORS} must hold {config.head_dim // 2} positive numbers")
    if config.rope.scaling is not None:
        raise InvalidModel(f"{header.path}: {_FACTORS} and rope.scaling.type at once are not supported")
    return Rope(config.rope.theta, FrequencyFactors(tuple(factors.tolist())))


def _lookup(header: GgufHeader, name: str, default: Value | None = None) -> Value | None:
    return header.metadata.get(f"{header.metadata.get('general.architecture')}.{name}", default)


def _number(header: GgufHeader, name: str, default: float | None = None) -> float:
    value = _lookup(header, name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise InvalidModel(f"{header.path}: metadata {name} must be a finite number, got {_short(value)}")
    return value


def _integer(header: GgufHeader, name: str) -> int:
    value = _lookup(header, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidModel(f"{header.path}: metadata {name} must be a positive integer, got {_short(value)}")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _huggingface_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor; a name without a counterpart stays, and is then refused as unknown."""
    if name in _PLAIN:
        return _PLAIN[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _LAYER:
        return name
    return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{match[3]}"


def _dequantise(path: Path, data: np.ndarray, info: TensorInfo) -> Tensor:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = info.shape[:-1]
    raw = data[info.offset : info.offset + info.size].reshape(*rows, -1)  # [..., bytes a row]
    kind = GGMLQuantizationType(info.kind)
    try:
        # Both give a copy: the file may go away.
        values = raw.view(_UNQUANTISED[kind]).astype(np.float32) if kind in _UNQUANTISED else dequantize(raw, kind)
    except (NotImplementedError, ValueError) as error:
        raise InvalidModel(f"{path}: tensor {info.name}: quantisation {kind.name} is not supported") from error
    return torch.from_numpy(values).reshape(info.shape)


def _unpermute(tensor: Tensor, heads: int) -> Tensor:
    """Undo GGUF's order of a Llama's query and key rows.

    The converter pairs dimension j of a head with j + 1 where Hugging Face pairs j with j + hd / 2.
    """
    rows, rest = tensor.shape[0], tensor.shape[1:]
    if rows % (2 * heads):
        return tensor  # the wrong shape, which the caller refuses
    pairs = tensor.reshape(heads, rows // heads // 2, 2, *rest)  # [heads, hd / 2, 2, ...]
    return pairs.transpose(1, 2).reshape(rows, *rest)
