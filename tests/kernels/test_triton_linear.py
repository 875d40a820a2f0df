"""The Triton product of few rows equals its torch twin, on a GPU or in Triton's interpreter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaserve.kernels.linear import Linear, linear_reference
from tests.devices import DEVICE, needs_gpu, needs_triton

pytestmark = needs_triton


@pytest.fixture(scope="module")
def kernels():
    from adaserve.kernels import triton_linear

    return triton_linear


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 16), tiles=st.sampled_from([1, 3, 67, 101]), blocks=st.integers(1, 9), seed=st.integers(0, 99))
def test_equals_its_twin(kernels, rows: int, tiles: int, blocks: int, seed: int) -> None:
    """Whatever K is divided into: 67 tiles in three parts, 101 in one, and never an empty part."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, blocks * 32, generator=draw).to(DEVICE)
    weight = torch.randn(tiles * 64, blocks * 32, generator=draw).to(DEVICE)
    found = kernels.product(x, weight, kernels.Tile(16, 32, 2))
    torch.testing.assert_close(found, linear_reference(x, weight, None), rtol=1e-4, atol=1e-4)


def test_half_precision_is_summed_in_float32(kernels) -> None:
    half = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16  # the interpreter multiplies no bfloat16
    x, weight = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(half).to(DEVICE) for shape in ((5, 512), (64, 512))
    )
    found = kernels.product(x, weight, kernels.Tile(16, 128, 2))
    assert found.dtype == half
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=2e-2)


def test_only_what_pays_and_fits_is_taken(kernels) -> None:
    assert kernels.tile_for(1, 55296, 5120) == kernels.FEW
    assert kernels.tile_for(17, 55296, 5120) == kernels.MORE
    for rows, outputs, depth in (
        (0, 55296, 5120),
        (65, 55296, 5120),
        (1, 576, 576),
        (17, 5120, 27648),
        (1, 55290, 5120),
        (1, 55296, 5130),
    ):
        assert kernels.tile_for(rows, outputs, depth) is None


@needs_gpu
@pytest.mark.parametrize("rows", [1, 7, 16, 17, 40, 64, 65])
@pytest.mark.parametrize(("outputs", "depth"), [(7168, 5120), (5120, 27648), (55296, 5120)])
def test_large_products(rows: int, outputs: int, depth: int) -> None:
    """Through Linear, with the sizes of a large model: like the library's, as near the exact product as bfloat16 goes."""
    draw = torch.Generator(DEVICE).manual_seed(rows)
    x = torch.randn(rows, depth, generator=draw, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.randn(outputs, depth, generator=draw, device=DEVICE, dtype=torch.bfloat16)
    exact = x.float() @ weight.float().T
    error = (Linear(weight)(x).float() - exact).norm() / exact.norm()
    assert float(error) < 4e-3
