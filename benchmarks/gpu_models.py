"""The models that the GPU benchmarks run: a large target grown in memory from a small model, and a draft for it.

The grown target computes what the small model computes, so texts and acceptance are real ones, while weights and KV are as large
as a large model's. Drafts:

    noise      the small model with noise on its weights: all its layers, and about as good as a good draft of a large model
    distilled  the layers that the package ships for the small model, with the small model's embedding and head
"""

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from adaserve.models.config import ModelConfig
from adaserve.models.decoder import Decoder
from adaserve.models.grow import SHAPES, GrownWeights, grown_config
from adaserve.models.load import load_draft, open_model
from adaserve.models.random import noisy_copy, random_weights
from adaserve.models.registry import Format, ModelSource, resolve_draft
from adaserve.models.rope import Rope
from adaserve.models.tokenizer import Tokenizer, load_tokenizer
from adaserve.models.weights import EMBEDDING, HEAD, assemble
from adaserve.workload.prompts import prompts

SMALL = ModelConfig(
    family="llama", layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab_size=49152, eps=1e-5,
    rope=Rope(100000.0), max_positions=8192, tie_embeddings=True,
)  # fmt: skip
LENGTH = 8192
"""Longest sequence."""


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
    parser.add_argument("--shape", choices=SHAPES, default="32b")
    parser.add_argument("--draft", choices=("noise", "distilled"), default="noise", help="distilled needs --model")
    parser.add_argument("--noise", type=float, default=0.1, help="on the draft's weights, in their standard deviations")
    parser.add_argument("--quick", action="store_true", help="fewer points")
    parser.add_argument("--layers", type=int, default=SMALL.layers, help="of the small model, without --model")
    parser.add_argument("--target-layers", type=int, help="instead of the shape's own")


def build(args: argparse.Namespace) -> Bench:
    """Grow the target on the device and make the draft."""
    begin = time.perf_counter()
    tokenizer = None
    if args.model is None:
        small = replace(SMALL, layers=args.layers)
        weights = {k: v.bfloat16() for k, v in random_weights(small, 0).items()}
        draw = random.Random(0)
        texts = [draw.choices(range(small.vocab_size), k=LENGTH)]
    else:
        source = ModelSource("small", Format.GGUF, args.model)
        small, opened = open_model(source)
        weights = {name: opened[name].bfloat16() for name in opened}
        tokenizer = load_tokenizer(source)
        texts = [tokenizer.encode(p) for kind in ("coding", "chat", "summarization") for p in prompts(kind)]
        random.Random(0).shuffle(texts)
    shape = SHAPES[args.shape] if args.target_layers is None else replace(SHAPES[args.shape], layers=args.target_layers)
    grown = GrownWeights(small, weights, grown_config(small, shape), dtype=torch.bfloat16, device="cuda")
    target = assemble(grown_config(small, shape), grown, "grown", dtype=torch.bfloat16, device="cuda", positions=LENGTH)
    draft = _distilled(small, weights) if args.draft == "distilled" else _noisy(small, weights, args.noise)
    torch.cuda.synchronize()
    print(f"built in {time.perf_counter() - begin:.1f} s, {torch.cuda.memory_allocated() / 1e9:.1f} GB", flush=True)

    def prompt(number: int, length: int) -> tuple[int, ...]:
        """The last tokens of prompts one after the other, from prompt `number` on."""
        tokens: list[int] = []
        while len(tokens) < length:
            tokens = texts[number % len(texts)] + tokens
            number += 1
        return tuple(tokens[-length:])

    return Bench(target, draft, tokenizer, prompt, not args.quick)


def _noisy(small: ModelConfig, weights: dict[str, torch.Tensor], noise: float) -> Decoder:
    matrices = {k: v.float() for k, v in weights.items() if v.dim() == 2 and k not in (EMBEDDING, HEAD)}
    noisy = {k: v.bfloat16() for k, v in noisy_copy(matrices, noise, 1).items()}
    return assemble(small, {**weights, **noisy}, "noisy", dtype=torch.bfloat16, device="cuda", positions=LENGTH)


def _distilled(small: ModelConfig, weights: dict[str, torch.Tensor]) -> Decoder:
    lender = assemble(small, weights, "small", dtype=torch.bfloat16, device="cuda", positions=LENGTH)
    return load_draft(resolve_draft("demo"), lender, dtype=torch.bfloat16)
