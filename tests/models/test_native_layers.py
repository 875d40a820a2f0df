"""The layers in one native call give what the loop over them gives, bit for bit."""

import pytest
import torch

from adaserve.kernels.norm import rms_norm
from adaserve.models.config import FAMILIES
from adaserve.models.decoder import Decoder
from adaserve.models.native_layers import NativeLayers
from adaserve.models.random import random_weights, tiny_config
from adaserve.models.weights import assemble
from tests.batches import causal_batch
from tests.devices import needs_native


def make(family: str, dtype: torch.dtype, **changes: object) -> Decoder:
    config = tiny_config(family, **changes)
    return assemble(config, random_weights(config, seed=3), "test", dtype=dtype)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 9, 200])
def test_equals_the_loop(family: str, dtype: torch.dtype, rows: int):
    # Widths that the buffers' sizes must all come from: of attention, of the inner layer and of the residual stream.
    for changes in ({}, {"head_dim": 40, "mlp_bias": family == "llama", "output_bias": True}, {"hidden": 80, "intermediate": 16}):
        decoder = make(family, dtype, **changes)
        tokens = torch.randint(100, (rows,), generator=torch.Generator().manual_seed(rows)).tolist()
        batch = causal_batch([(1, tokens, 0), (0, tokens[:3], 0)], slots=2, pages_per_slot=14, page_size=16)
        one, other = (decoder.new_pool(pages=28, page_size=16, slots=2) for _ in range(2))
        for pool in (one, other):
            pool.keys.zero_()
            pool.values.zero_()
        residual = decoder.embedding[batch.token].float()
        x = rms_norm(residual, decoder.layers[0].input_norm, decoder.config.eps)
        expected = decoder._run_layers(x, residual, batch, other)
        assert expected.abs().mean() > 0.1
        assert decoder.native_layers is not None
        assert decoder.native_layers(x, residual, batch, one)
        assert torch.equal(x, expected)
        assert torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)
        assert torch.equal(decoder.forward(batch, one), expected)


def test_wide_numbers_take_the_loop():
    assert make("llama", torch.float64).native_layers is None


@needs_native
def test_what_does_not_suit_is_left_alone():
    decoder = make("llama", torch.float32)
    assert isinstance(decoder.native_layers, NativeLayers)
    batch = causal_batch([(0, [1, 2], 0)], slots=1, pages_per_slot=1, page_size=4)
    pool = decoder.new_pool(pages=1, page_size=4, slots=1)
    pool.keys, pool.values = pool.keys.double(), pool.values.double()
    x, residual = torch.ones(2, 32), torch.ones(2, 32)
    assert not decoder.native_layers(x, residual, batch, pool)
    assert torch.equal(x, torch.ones(2, 32))
