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
@given(rows=st.integers(1, 32), tiles=st.sampled_from([1, 3, 67, 101]), blocks=st.integers(1, 9), seed=st.integers(0, 99))
def test_equals_its_twin(kernels, rows: int, tiles: int, blocks: int, seed: int) -> None:
    """Whatever K is divided into: 67 tiles in three parts, 101 in one, and never an empty part."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, blocks * 128, generator=draw).to(DEVICE)
    weight = torch.randn(tiles * 64, blocks * 128, generator=draw).to(DEVICE)
    torch.testing.assert_close(kernels.product(x, weight), linear_reference(x, weight, None), rtol=1e-4, atol=2e-4)


def test_half_precision_is_summed_in_float32(kernels) -> None:
    half = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16  # the interpreter multiplies no bfloat16
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 512, generator=draw).to(half).to(DEVICE) for rows in (5, 64))
    found = kernels.product(x, weight)
    assert found.dtype == half
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=2e-2)


def test_only_what_pays_and_fits_is_taken(kernels) -> None:
    for sizes in ((1, 7168, 5120), (32, 5120, 27648)):
        assert kernels.pays(*sizes)
    for sizes in ((0, 55296, 5120), (33, 55296, 5120), (1, 576, 576), (1, 55290, 5120), (1, 55296, 5130)):
        assert not kernels.pays(*sizes)


@needs_gpu
@pytest.mark.parametrize("rows", [1, 7, 16, 17, 32, 33])
@pytest.mark.parametrize(("outputs", "depth"), [(7168, 5120), (5120, 27648), (55296, 5120)])
def test_large_products(rows: int, outputs: int, depth: int) -> None:
    """Through Linear, with the sizes of a large model: like the library's, as near the exact product as bfloat16 goes."""
    draw = torch.Generator(DEVICE).manual_seed(rows)
    x = torch.randn(rows, depth, generator=draw, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.randn(outputs, depth, generator=draw, device=DEVICE, dtype=torch.bfloat16)
    exact = x.float() @ weight.float().T
    error = (Linear(weight)(x).float() - exact).norm() / exact.norm()
    assert float(error) < 4e-3
