"""ModelConfig reads config.json of transformers 4 and 5, and refuses what it cannot serve in one clear line."""

from dataclasses import asdict
from typing import Any

import pytest

from adaserve.errors import InvalidModel
from adaserve.models.config import ModelConfig, token_ids
from adaserve.models.random import random_weights, tiny_config
from adaserve.models.rope import LinearScaling, Llama3Scaling, Rope

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 100,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def read(**changes: Any) -> ModelConfig:
    return ModelConfig.from_huggingface(LLAMA | changes)


def test_reads_the_shape() -> None:
    config = read(eos_token_id=[2, 5], tie_word_embeddings=True)
    assert (config.layers, config.hidden, config.heads, config.kv_heads, config.head_dim) == (2, 64, 4, 2, 16)
    assert (config.intermediate, config.vocab_size, config.eps, config.max_positions) == (96, 100, 1e-5, 2048)
    assert config.tie_embeddings
    assert config.eos_ids == (2, 5)
    assert config.note is None


@pytest.mark.parametrize(
    ("old", "new", "rope"),
    [
        ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, Rope(10000.0)),
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, Rope(5e5)),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            Rope(1e4, LinearScaling(2.0)),
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3"} | SCALING},
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5} | SCALING},
            Rope(5e5, Llama3Scaling(8.0, 1.0, 4.0, 8192)),
        ),
    ],
)
def test_old_and_new_rope_words_mean_the_same(old: dict[str, Any], new: dict[str, Any], rope: Rope) -> None:
    assert read(**old) == read(**new)
    assert read(**old).rope == rope


def test_families_differ_in_biases_and_norms() -> None:
    def traits(model_type: str, **changes: Any) -> tuple[bool, bool, bool, bool]:
        config = read(model_type=model_type, architectures=None, **changes)
        return config.qkv_bias, config.output_bias, config.mlp_bias, config.qk_norm

    assert traits("llama") == traits("mistral") == (False, False, False, False)
    assert traits("llama", attention_bias=True, mlp_bias=True) == (True, True, True, False)
    assert traits("qwen2") == (True, False, False, False)
    assert traits("qwen3") == (False, False, False, True)
    assert read(model_type="qwen3", architectures=None).head_dim == 128, "transformers' default, whatever the width"


def test_a_sliding_window_caps_the_context_and_says_so() -> None:
    capped = read(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=512)
    assert capped.max_positions == 512
    assert capped.note is not None and "512" in capped.note and "2048" in capped.note
    assert read(model_type="mistral", architectures=None, sliding_window=None).max_positions == 2048
    assert read(model_type="mistral", architectures=None, sliding_window=4096).note is None
    assert read(model_type="qwen2", architectures=None, sliding_window=512, use_sliding_window=False).max_positions == 2048
    assert read(model_type="qwen2", architectures=None, sliding_window=512, use_sliding_window=True).max_positions == 512


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"model_type": None}, "model_type None"),
        ({"model_type": ["llama"]}, "model_type ['llama']"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"architectures": "LlamaForCausalLM"}, "not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "odd"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"eos_token_id": "two"}, "eos_token_id"),
        ({"eos_token_id": [-1]}, "eos_token_id"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_scaling": "linear"}, "rope parameters"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3"} | SCALING | {"high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_refuses_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidModel) as caught:
        ModelConfig.from_huggingface(LLAMA | changes, "folder/config.json")
    message = str(caught.value)
    assert message.startswith("folder/config.json: ")
    assert words in message
    assert "\n" not in message


def test_token_ids_keep_order_and_drop_repeats() -> None:
    assert token_ids(None, "x") == ()
    assert token_ids(7, "x") == (7,)
    assert token_ids([7, 3, 7], "x") == (7, 3)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_counts_every_weight(family: str, tied: bool) -> None:
    config = tiny_config(family, tie_embeddings=tied, output_bias=family == "qwen3", mlp_bias=family == "llama")
    assert config.parameters == sum(tensor.numel() for tensor in random_weights(config, seed=0).values())


def test_config_is_plain_data() -> None:
    assert asdict(tiny_config())["rope"] == {"theta": 10000.0, "scaling": None}
