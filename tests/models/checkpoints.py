"""Tiny checkpoints on disk for tests: Hugging Face folders written by transformers, and GGUF files."""

from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

from adaserve.models.config import ModelConfig
from adaserve.models.decoder import Decoder
from tests.batches import causal_batch

SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# Name -> (transformers' class name, fields that differ from SMALL). Every trait that ModelConfig knows occurs somewhere.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 64}),
    "mistral-wide-heads": ("Mistral", {"head_dim": 16, "sliding_window": None}),
    "qwen2": ("Qwen2", {"head_dim": None}),
    "qwen2-tied": ("Qwen2", {"head_dim": None, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-tied": ("Qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
}


def huggingface_model(name: str, seed: int = 0) -> Any:
    """A transformers model in float64 with random weights that leave no term of it idle: biases and norms included."""
    import transformers

    kind, changes = FAMILIES[name]
    fields = {key: value for key, value in (SMALL | changes).items() if value is not None or key == "sliding_window"}
    config = getattr(transformers, f"{kind}Config")(**fields)
    config._attn_implementation = "sdpa"  # the eager one takes its softmax in float32, whatever the dtype
    model = getattr(transformers, f"{kind}ForCausalLM")(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(draw * 0.3 if parameter.dim() == 2 else 1 + draw * 0.3)
    return model


def run(decoder: Decoder, tokens: list[int], pieces: list[int], slot: int = 1) -> Tensor:
    """Logits of every position, computed in pieces of the given lengths that must add up to the whole.  # [len, V]"""
    layout = {"slots": 3, "pages_per_slot": -(-len(tokens) // 4), "page_size": 4}
    pool = decoder.new_pool(pages=3 * layout["pages_per_slot"], page_size=4, slots=3)
    parts, start = [], 0
    for length in pieces:
        batch = causal_batch([(slot, tokens[start : start + length], start)], **layout)
        parts.append(decoder.logits(decoder.forward(batch, pool)))
        start += length
    assert start == len(tokens)
    return torch.cat(parts)


def write_gguf(
    path: Path,
    config: ModelConfig,
    weights: dict[str, Tensor],
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    factors: list[float] | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a model as llama.cpp's converter does, Llama's permutation of query and key rows included."""
    arch = "llama" if config.family == "mistral" else config.family
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.intermediate)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.eps)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_eos_token_id(2)
    for key, value in (extra or {}).items():
        {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](key, value)
    names = gguf.get_tensor_name_map(
        {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}[arch], 99
    )
    for name, tensor in weights.items():
        stored = tensor
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.heads if ".q_proj." in name else config.kv_heads
            stored = tensor.reshape(heads, 2, config.head_dim // 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
        data = stored.float().numpy()
        quantise = tensor.dim() == 2 and tensor.shape[1] % 32 == 0
        target = kind if quantise else gguf.GGMLQuantizationType.F32
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert mapped is not None, name
        writer.add_tensor(mapped, gguf.quants.quantize(data, target), raw_dtype=target)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", torch.tensor(factors).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
