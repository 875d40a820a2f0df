"""Angles: float64 until the last rounding, and scalings as defined."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.models.rope import FrequencyFactors, LinearScaling, Llama3Scaling, Rope

head_dims = st.integers(1, 64).map(lambda half: 2 * half)
thetas = st.floats(100.0, 1e6)


@given(thetas, head_dims)
def test_plain_frequencies_fall_from_one(theta: float, head_dim: int) -> None:
    frequency = Rope(theta).frequencies(head_dim)
    assert frequency.dtype == torch.float64
    assert frequency[0] == 1
    for pair, value in enumerate(frequency.tolist()):
        assert value == pytest.approx(theta ** (-2 * pair / head_dim), rel=1e-12)


@given(thetas, head_dims, st.floats(1.0, 64.0))
def test_linear_scaling_divides_positions(theta: float, head_dim: int, factor: float) -> None:
    scaled = Rope(theta, LinearScaling(factor)).frequencies(head_dim)
    torch.testing.assert_close(scaled * factor, Rope(theta).frequencies(head_dim))


@given(thetas, head_dims, st.floats(1.5, 32.0), st.integers(64, 8192))
def test_llama3_scaling_keeps_short_waves_and_divides_long_ones(
    theta: float, head_dim: int, factor: float, original: int
) -> None:
    plain = Rope(theta).frequencies(head_dim)
    scaled = Rope(theta, Llama3Scaling(factor, 1.0, 4.0, original)).frequencies(head_dim)
    length = 2 * torch.pi / plain
    short, long = length < original / 4, length > original / 1
    torch.testing.assert_close(scaled[short], plain[short])
    torch.testing.assert_close(scaled[long], plain[long] / factor)
    assert bool((scaled <= plain).all() and (scaled >= plain / factor * (1 - 1e-12)).all())


def test_frequency_factors_divide() -> None:
    scaled = Rope(100.0, FrequencyFactors((1.0, 2.0))).frequencies(4)
    torch.testing.assert_close(scaled, torch.tensor([1.0, 0.05], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_table_is_exact_at_far_positions(dtype: torch.dtype) -> None:
    positions = 20_001  # more than two chunks
    table = Rope(1e4).table(head_dim=8, positions=positions, dtype=dtype, device="cpu")
    assert table.cos.shape == table.sin.shape == (positions, 4)
    assert table.cos.dtype == table.sin.dtype == dtype
    for position in (0, 1, 8191, 8192, 20_000):
        angle = position * Rope(1e4).frequencies(8)
        torch.testing.assert_close(
            table.cos[position], angle.cos().to(dtype), rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-7
        )
        torch.testing.assert_close(
            table.sin[position], angle.sin().to(dtype), rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-7
        )
