"""The layers in few kernels give what the loop over them gives, on a GPU or in Triton's interpreter."""

from dataclasses import replace

import pytest
import torch

from adaserve.cache.pool import KVPool
from adaserve.kernels import layer_products
from adaserve.kernels.norm import rms_norm
from adaserve.models.config import FAMILIES
from adaserve.models.decoder import Decoder
from adaserve.models.fused_layers import FusedLayers
from adaserve.models.random import random_weights, tiny_config
from adaserve.models.weights import assemble
from adaserve.runtime.batch import ForwardBatch
from tests.batches import causal_batch
from tests.devices import DEVICE, needs_gpu, needs_triton

SMALL = {"hidden": 192, "heads": 4, "kv_heads": 2, "head_dim": 32, "intermediate": 128}
SIZES = {"slots": 2, "pages_per_slot": 14, "page_size": 16}


def make(family: str, dtype: torch.dtype, **changes: object) -> Decoder:
    config = tiny_config(family, **(SMALL | changes))
    return assemble(config, random_weights(config, seed=3), "test", dtype=dtype, device=DEVICE)


def two_texts(rows: int) -> ForwardBatch:
    tokens = torch.randint(100, (rows,), generator=torch.Generator().manual_seed(rows)).tolist()
    batch = causal_batch([(1, tokens, 0), (0, tokens[:3], 0)], **SIZES)
    names = ("token", "position", "prefix", "mask", "dest", "start", "slot", "pages")
    return replace(batch, **{name: getattr(batch, name).to(DEVICE) for name in names})


@needs_triton
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 20, 61])
@torch.inference_mode()
def test_equals_the_loop(family: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_products, "on_gpu", lambda x: True)
    biases = {"mlp_bias": True, "output_bias": True} if family == "llama" else {}
    decoder = make(family, torch.float32, **biases)
    assert FusedLayers.able(decoder.config, decoder.layers, decoder.dtype)
    fused = FusedLayers(decoder.config, decoder.layers, decoder.table)
    batch = two_texts(rows)
    one, other = (decoder.new_pool(pages=28, page_size=16, slots=2) for _ in range(2))
    for pool in (one, other):
        pool.keys.zero_()
        pool.values.zero_()
    residual = decoder.embedding[batch.token]
    before = residual.clone()
    found = rms_norm(fused(residual, batch, one), decoder.norm, decoder.config.eps)
    assert torch.equal(residual, before)
    x = rms_norm(residual, decoder.layers[0].input_norm, decoder.config.eps)
    expected = decoder._run_layers(x, residual, batch, other)
    assert expected.abs().mean() > 0.1
    for ours, theirs in ((found, expected), (one.keys, other.keys), (one.values, other.values)):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@needs_triton
def test_all_kernels_can_be_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_products, "on_gpu", lambda x: True)
    decoder = make("qwen3", torch.float32)
    FusedLayers(decoder.config, decoder.layers, decoder.table).prepare()


def test_what_does_not_suit_is_left_to_the_loop() -> None:
    for family, dtype, changes in (("llama", torch.float64, {}), ("llama", torch.float32, {"hidden": 200})):
        decoder = make(family, dtype, **changes)
        assert not FusedLayers.able(decoder.config, decoder.layers, decoder.dtype)
        assert decoder.fused_layers is None
    if DEVICE.type == "cpu":
        assert make("llama", torch.float32).fused_layers is None


@torch.inference_mode()
def test_the_decoder_takes_them_for_few_rows() -> None:
    taken = []

    class Watched(FusedLayers):
        def __call__(self, residual: torch.Tensor, batch: ForwardBatch, pool: KVPool) -> torch.Tensor:
            taken.append(len(residual))
            return super().__call__(residual, batch, pool)

    decoder = make("llama", torch.float32)
    decoder.__dict__["fused_layers"] = Watched(decoder.config, decoder.layers, decoder.table)
    for rows in (1, 61, 62):
        decoder.forward(two_texts(rows), decoder.new_pool(pages=28, page_size=16, slots=2))
    assert taken == [2, 64]


@needs_gpu
@torch.inference_mode()
def test_they_are_as_near_the_truth_as_the_loop() -> None:
    """In bfloat16 they are as near the loop in float32 as the loop in bfloat16 is."""
    exact, rough = make("qwen3", torch.float32), make("qwen3", torch.bfloat16)
    assert rough.fused_layers is not None
    batch = two_texts(61)
    pools = [d.new_pool(pages=28, page_size=16, slots=2) for d in (exact, rough, rough)]

    def loop(decoder: Decoder, pool: KVPool) -> torch.Tensor:
        residual = decoder.embedding[batch.token]
        return decoder._run_layers(rms_norm(residual, decoder.layers[0].input_norm, decoder.config.eps), residual, batch, pool)

    truth = loop(exact, pools[0])
    theirs = (loop(rough, pools[1]).float() - truth).norm()
    ours = (rough.forward(batch, pools[2]).float() - truth).norm()
    assert ours < 1.5 * theirs
