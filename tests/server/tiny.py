"""A tiny random model on disk, with a small real tokenizer and chat template, for tests that run the real engine."""

import json
from pathlib import Path

import tokenizers
from safetensors.torch import save_file

from adaserve.models.random import random_weights, tiny_config
from adaserve.profile import Profile

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = [
    "def add(first, second):\n    return first + second\n",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Écoute: 你好, мир! 🙂 Numbers 0123456789 and (brackets) [too] {here}.",
]
SPECIALS = ["<|end|>", "<|system|>", "<|developer|>", "<|user|>", "<|assistant|>"]
CONTEXT = 512


def write_tokenizer(folder: Path) -> int:
    """Train a byte-level tokenizer into the folder; returns its size."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return int(tokenizer.get_vocab_size())


def write_model(folder: Path, scale: float = 3.0) -> Path:
    """Write a complete model folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer(folder)
    config = tiny_config(vocab_size=vocab_size, max_positions=CONTEXT)
    save_file(
        {name: tensor.float() for name, tensor in random_weights(config, seed=1, scale=scale).items()},
        folder / "model.safetensors",
    )
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate,
        "vocab_size": vocab_size,
        "rms_norm_eps": config.eps,
        "max_position_embeddings": CONTEXT,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def write_profile(path: Path) -> Path:
    """Write step times that suit the tiny model, so that a server need not measure them first; returns the path."""
    curve = {rows: 1.0 + rows / 64 for rows in (1, 16, 64, 256)}
    profile = Profile(
        name="tiny",
        verify_ms_by_rows=curve,
        attention_ms_per_1000_context_tokens=0.1,
        draft_step_ms_by_rows={},
        draft_attention_ms_per_1000_context_tokens=0.0,
        step_overhead_ms=0.5,
        residual_cv=0.1,
        baseline_ms_per_token=2.0,
    )
    path.write_text(json.dumps(profile.to_json()))
    return path
