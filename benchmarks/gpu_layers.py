"""The layers of a narrow decoder on one GPU: the loop's nine kernels a layer beside the five of FusedLayers.

A layer of SmolLM2-135M has 7 MB of weights, 1.5 us of an H200's memory, so a pass lasts as long as its kernels take to follow one
another: what a kernel waits for (its launch, its first bytes, its sums) counts, and bandwidth hardly does.

    loop, fused    all layers as one graph, launched while the device is busy with something else, in us a layer
    attention      what is the same in both, alone
    difference     the largest between both in what they return, as a share of the largest value

Rows are nodes of trees, three of a request, each after CONTEXT tokens. Weights are random.

    python benchmarks/gpu_layers.py [--rows 1,3,16,24,64] [--layers 30]

Times are medians. The last line is one JSON object.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace

import torch
from gpu_timing import graph_of, milliseconds
from torch import Tensor

from adaserve.attention.paged import attend
from adaserve.attention.tiling import tile
from adaserve.cache.pool import KVPool
from adaserve.kernels.gpu import choose_library
from adaserve.kernels.norm import rms_norm
from adaserve.models.config import ModelConfig
from adaserve.models.decoder import Decoder
from adaserve.models.fused_layers import FusedLayers
from adaserve.models.rope import Rope
from adaserve.models.weights import assemble, expected_shapes
from adaserve.runtime.batch import TAIL_ROWS, ForwardBatch

SHAPE = ModelConfig(
    family="llama", layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab_size=64, eps=1e-5,
    rope=Rope(100000.0), max_positions=2048, tie_embeddings=True,
)  # fmt: skip
CONTEXT, WIDTH, PAGE = 256, 3, 16


def decoder_of(config: ModelConfig) -> Decoder:
    """A decoder of random weights, drawn on the device."""

    def draw(shape: tuple[int, ...]) -> Tensor:
        drawn = torch.randn(shape, device="cuda")
        return (1 + drawn * 0.1 if len(shape) == 1 else drawn * shape[1] ** -0.5).bfloat16()

    weights = {name: draw(shape) for name, shape in expected_shapes(config).items()}
    return assemble(config, weights, "random", dtype=torch.bfloat16, device="cuda")


def rows_of(decoder: Decoder, rows: int) -> tuple[ForwardBatch, KVPool]:
    """Nodes after CONTEXT tokens each, WIDTH of a request, which see themselves and the context."""
    config, groups, each = decoder.config, -(-rows // WIDTH), CONTEXT // PAGE
    pool = decoder.new_pool(pages=groups * each, page_size=PAGE, slots=groups)
    pool.keys.normal_()
    pool.values.normal_()
    index = torch.arange(rows, device="cuda")
    slot, place = index // WIDTH, index % WIDTH
    batch = ForwardBatch(
        token=index % config.vocab_size,
        position=torch.full_like(index, CONTEXT),
        prefix=torch.full_like(index, CONTEXT),
        mask=1 << place,
        dest=pool.tail_start + slot * TAIL_ROWS + place,
        start=(torch.arange(groups + 1, device="cuda") * WIDTH).clamp(max=rows),
        slot=torch.arange(groups, device="cuda"),
        pages=torch.randperm(groups * each, device="cuda").view(groups, each),
        page_size=PAGE,
        tail_start=pool.tail_start,
    )
    tiles = tile(batch, group=config.heads // config.kv_heads, kv_heads=config.kv_heads, longest=CONTEXT)
    return replace(batch, tiles=tiles), pool


def measure(decoder: Decoder, rows: int) -> dict[str, float]:
    """Microseconds of a layer in a pass over all of them, and the difference."""
    layers, config = decoder.layers, decoder.config
    (batch, pool), few = rows_of(decoder, rows), FusedLayers(config, layers, decoder.table)
    residual = torch.randn(rows, config.hidden, device="cuda", dtype=torch.bfloat16)
    q = torch.randn(rows, config.heads, config.head_dim, device="cuda", dtype=torch.bfloat16)

    def attention() -> None:
        for keys, values in zip(pool.keys, pool.values, strict=True):
            attend(q, keys, values, batch, config.head_dim**-0.5)

    def loop() -> Tensor:
        return decoder._run_layers(rms_norm(residual, layers[0].input_norm, config.eps), residual, batch, pool)

    def fused() -> Tensor:
        return rms_norm(few(residual, batch, pool), decoder.norm, config.eps)

    runs: dict[str, Callable[[], object]] = {"loop": loop, "fused": fused, "attention": attention}
    found = {name: milliseconds(graph_of(run).replay, queued=True) / len(layers) * 1e3 for name, run in runs.items()}
    expected = loop().float()
    found["difference"] = float((fused().float() - expected).abs().max() / expected.abs().max())
    print(f"{rows:4} rows: " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()), flush=True)
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,3,16,24,64")
    parser.add_argument("--layers", type=int, default=SHAPE.layers)
    args = parser.parse_args()
    torch.manual_seed(0)
    choose_library()
    decoder = decoder_of(replace(SHAPE, layers=args.layers))
    results = {rows: measure(decoder, rows) for rows in map(int, args.rows.split(","))}
    print(json.dumps({"device": torch.cuda.get_device_name(), "layers": args.layers, "rows": results}))


if __name__ == "__main__":
    main()
