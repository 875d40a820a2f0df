"""Noise for drafts: the keyed noise of the target's draws, in float32."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.kernels.gumbel import perturbed_argmax_twin
from adaserve.kernels.perturb import perturb, perturb_reference
from adaserve.runtime.noise import gumbel_noise, noise_key
from tests.devices import needs_native
from tests.oracles import sampling as oracle


@needs_native
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 100, 512, 513, 8193]), st.integers(0, 9))
def test_native_equals_its_twin(seed: int, vocabulary: int, rows: int) -> None:
    """Runs of rows of one key, of different temperatures, none among them."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=draw) * 3
    temperature = torch.randint(0, 3, (rows,), generator=draw).double() * 0.7
    key = torch.randint(-(2**62), 2**62, (3,), generator=draw)[torch.randint(0, 3, (rows,), generator=draw).sort().values]
    torch.testing.assert_close(
        perturb(logits, temperature, key), perturb_reference(logits, temperature, key), rtol=1e-6, atol=1e-5
    )


@needs_native
def test_no_digits_are_lost_at_either_end() -> None:
    """Of two million numbers the greatest is about 15 and the least about -2.7: u within 1e-6 of 1 and of 0."""
    key = torch.arange(200)
    found = perturb(torch.zeros(200, 10007), torch.ones(200), key)
    expected = perturb_reference(torch.zeros(200, 10007, dtype=torch.float64), torch.ones(200), key)
    assert expected.max() > 12 and expected.min() < -2.5
    assert (found - expected).abs().max() < 4e-6


@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64]))
def test_its_best_token_is_the_draw(seed: int, dtype: torch.dtype) -> None:
    """The noise is that of the draws: the same key, the same token."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 700, generator=draw).to(dtype)
    words = [torch.randint(0, 2**40, (5,), generator=draw) for _ in range(3)]
    heat = torch.tensor([0.0, 0.5, 1.0, 1.0, 2.0], dtype=torch.float64)
    found = perturb(logits, heat, noise_key(*words))
    drawn = perturbed_argmax_twin(logits, heat, *words)
    best = found.max(1).values
    assert found.dtype == dtype
    assert (best - found.gather(1, drawn[:, None])[:, 0] < 1e-5).all()


def test_equals_the_oracle() -> None:
    words = torch.tensor([5]), torch.tensor([1]), torch.tensor([70])
    found = perturb(torch.zeros(1, 40), torch.full((1,), 0.5), noise_key(*words))
    assert found[0].tolist() == pytest.approx([0.5 * oracle.gumbel(5, 1, 70, v) for v in range(40)], abs=1e-5)
    assert torch.equal(gumbel_noise(*words, 40).argmax(1), found.argmax(1))


def test_what_is_not_finite_stays() -> None:
    logits = torch.tensor([[0.0, math.nan, math.inf, -math.inf]]).repeat(2, 1)
    found = perturb(logits, torch.tensor([0.0, 1.0]), torch.tensor([3, 3]))
    assert torch.equal(found[:, 1:].isfinite(), torch.zeros(2, 3, dtype=torch.bool))
    assert found[:, 1].isnan().all() and (found[:, 2] > 0).all() and (found[:, 3] < 0).all()
    assert found[0, 0] == 0


def test_no_rows() -> None:
    assert perturb(torch.zeros(0, 9), torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0, 9)
