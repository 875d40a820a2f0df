"""Writes the demo target as a folder in Hugging Face layout, bfloat16, for engines that do not read its GGUF file.

    .venv/bin/python benchmarks/export_demo.py FOLDER

The weights are those that this project computes with: every GGUF block expanded and rounded to bfloat16 once.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from adaserve.models.gguf import GgufWeights, gguf_config
from adaserve.models.gguf_header import read_header
from adaserve.models.registry import resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    source = resolve("demo")
    header = read_header(source.path)
    config = gguf_config(header)
    folder.mkdir(parents=True, exist_ok=True)
    weights = GgufWeights(header)
    save_file({name: weights[name].to(torch.bfloat16).contiguous() for name in weights}, folder / "model.safetensors")
    described = transformers.LlamaConfig(
        hidden_size=config.hidden,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        rms_norm_eps=config.eps,
        max_position_embeddings=config.max_positions,
        rope_theta=config.rope.theta,
        tie_word_embeddings=config.tie_embeddings,
        eos_token_id=config.eos_ids[0],
        torch_dtype="bfloat16",
    )
    described.architectures = ["LlamaForCausalLM"]
    described.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(str(source.path.parent), gguf_file=source.path.name).save_pretrained(folder)
    print(json.dumps({"folder": str(folder), "tensors": len(weights)}))


if __name__ == "__main__":
    main()
