"""The models that the GPU benchmarks run: a large target grown in memory from a small model, and a draft for it.

The grown target computes what the small model computes, so texts and acceptance are real ones, while weights and KV are as large
as a large model's. Drafts:

    noise      the small model with noise on its weights: all its layers, and about as good as a good draft of a large model
    distilled  the layers that the package ships for the small model, with the small model's embedding and head

`--shape tiny --device cpu` tries a benchmark out where there is no GPU.
"""

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from gpu_timing import settle

from adaserve.models.config import ModelConfig
from adaserve.models.decoder import Decoder
from adaserve.models.grow import SHAPES, GrownWeights, Shape, grown_config
from adaserve.models.load import load_draft, open_model
from adaserve.models.random import noisy_copy, random_weights, tiny_config
from adaserve.models.registry import Format, ModelSource, resolve_draft
from adaserve.models.rope import Rope
from adaserve.models.tokenizer import Tokenizer, load_tokenizer
from adaserve.models.weights import EMBEDDING, HEAD, assemble
from adaserve.parallel.group import ALONE, Group
from adaserve.workload.prompts import prompts

SMALL = ModelConfig(
    family="llama", layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab_size=49152, eps=1e-5,
    rope=Rope(100000.0), max_positions=8192, tie_embeddings=True,
)  # fmt: skip
LENGTH = 8192
"""Longest sequence."""
TINY = Shape(hidden=64, layers=4, heads=8, kv_heads=4, head_dim=16, intermediate=256)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
RANDOM_TEXTS = 64
"""Texts of random tokens, where there is no model that could make anything of real ones."""


@dataclass(frozen=True)
class Bench:
    """What all sections measure with. prompt: number of a prompt and its length -> tokens. tokenizer: None for random weights."""

    target: Decoder
    draft: Decoder
    tokenizer: Tokenizer | None
    prompt: Callable[[int, int], tuple[int, ...]]
    full: bool


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Declare what `build` reads."""
    parser.add_argument("--model", type=Path, help="the small model's .gguf file")
    parser.add_argument("--shape", choices=(*SHAPES, "tiny"), default="32b")
    parser.add_argument("--draft", choices=("noise", "distilled"), default="noise", help="distilled needs --model")
    parser.add_argument("--noise", type=float, default=0.1, help="on the draft's weights, in their standard deviations")
    parser.add_argument("--quick", action="store_true", help="fewer points")
    parser.add_argument("--layers", type=int, default=SMALL.layers, help="of the small model, without --model")
    parser.add_argument("--target-layers", type=int, help="instead of the shape's own")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of random logits, without --model; with 8 drafts are often right"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")


def build(args: argparse.Namespace, group: Group = ALONE) -> Bench:
    """Grow the target, or this rank's share of it, on the device and make the draft."""
    begin = time.perf_counter()
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    tokenizer = None
    if args.model is None:
        small = tiny_config(max_positions=LENGTH) if args.shape == "tiny" else replace(SMALL, layers=args.layers)
        weights = {k: v.to(dtype) for k, v in random_weights(small, 0, args.scale).items()}
        draw = random.Random(0)
        texts = [draw.choices(range(small.vocab_size), k=LENGTH) for _ in range(RANDOM_TEXTS)]
    else:
        source = ModelSource("small", Format.GGUF, args.model)
        small, opened = open_model(source)
        weights = {name: opened[name].to(dtype) for name in opened}
        tokenizer = load_tokenizer(source)
        texts = [tokenizer.encode(p) for kind in ("coding", "chat", "summarization") for p in prompts(kind)]
        random.Random(0).shuffle(texts)
    shape = TINY if args.shape == "tiny" else SHAPES[args.shape]
    shape = shape if args.target_layers is None else replace(shape, layers=args.target_layers)
    grown = GrownWeights(small, weights, grown_config(small, shape), dtype=dtype, device=device)
    target = assemble(grown_config(small, shape), grown, "grown", dtype=dtype, device=device, positions=LENGTH, group=group)
    draft = (
        _distilled(small, weights, device, dtype)
        if args.draft == "distilled"
        else _noisy(small, weights, args.noise, device, dtype)
    )
    settle()
    held = f", {torch.cuda.memory_allocated() / 1e9:.1f} GB" if device.type == "cuda" else ""
    print(f"built in {time.perf_counter() - begin:.1f} s{held}", flush=True)

    def prompt(number: int, length: int) -> tuple[int, ...]:
        """The last tokens of prompts one after the other, from prompt `number` on."""
        tokens: list[int] = []
        while len(tokens) < length:
            tokens = texts[number % len(texts)] + tokens
            number += 1
        return tuple(tokens[-length:])

    return Bench(target, draft, tokenizer, prompt, not args.quick)


def _noisy(
    small: ModelConfig, weights: dict[str, torch.Tensor], noise: float, device: torch.device, dtype: torch.dtype
) -> Decoder:
    matrices = {k: v.float() for k, v in weights.items() if v.dim() == 2 and k not in (EMBEDDING, HEAD)}
    noisy = {k: v.to(dtype) for k, v in noisy_copy(matrices, noise, 1).items()}
    return assemble(small, {**weights, **noisy}, "noisy", dtype=dtype, device=device, positions=LENGTH)


def _distilled(small: ModelConfig, weights: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype) -> Decoder:
    lender = assemble(small, weights, "small", dtype=dtype, device=device, positions=LENGTH)
    return load_draft(resolve_draft("demo"), lender, dtype=dtype)
