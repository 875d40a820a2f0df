import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from adaserve.runtime.noise import _shift, gumbel_at, gumbel_noise, noise_key, uniform_at
from tests.oracles import sampling as oracle

WORDS = st.integers(-(2**63), 2**63 - 1)
SMALL = st.integers(0, 2**31)


def keys(seed: int | torch.Tensor, choice: int | torch.Tensor, position: int | torch.Tensor) -> torch.Tensor:
    return noise_key(*torch.broadcast_tensors(*(torch.as_tensor(word) for word in (seed, choice, position))))


@given(WORDS, SMALL, SMALL, SMALL)
def test_equals_plain_integer_arithmetic(seed: int, choice: int, position: int, token: int) -> None:
    assert uniform_at(keys(seed, choice, position), torch.tensor(token)).item() == oracle.uniform(seed, choice, position, token)
    noise = gumbel_at(keys(seed, choice, position), torch.tensor(token)).item()
    assert math.isclose(noise, oracle.gumbel(seed, choice, position, token), rel_tol=1e-14, abs_tol=1e-14)


def test_values_never_change() -> None:
    # Seeds are a promise to users: the same seed gives the same text after an upgrade.
    noise = gumbel_noise(torch.tensor([0, 42]), torch.tensor([0, 1]), torch.tensor([0, 17]), 3)
    expected = [[oracle.gumbel(0, 0, 0, t) for t in range(3)], [oracle.gumbel(42, 1, 17, t) for t in range(3)]]
    torch.testing.assert_close(noise, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-14)
    assert oracle.uniform(42, 1, 17, 0).hex() == "0x1.08bb5ed00992ap-2"


def test_a_larger_vocabulary_continues_a_smaller_one() -> None:
    words = torch.tensor([5]), torch.tensor([0]), torch.tensor([9])
    torch.testing.assert_close(gumbel_noise(*words, 10007)[:, :100], gumbel_noise(*words, 100), rtol=0, atol=0)


def test_uniform_numbers_stay_inside_at_the_extremes_of_the_hash() -> None:
    hashes = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    u = (2 * _shift(hashes, 12) + 1).double() * 2.0**-53
    assert ((u > 0) & (u < 1)).all()
    assert u.min() == 2.0**-53 and u.max() == 1 - 2.0**-53
    assert (-(-u.log()).log()).isfinite().all()
    # The pitfall that float64 avoids: the same numbers in float32 reach 1, whose noise is infinite and wins every draw.
    assert u.float().max() == 1 and (-(-u.float().log()).log()).max() == math.inf


def test_uniform_numbers_of_every_stream_are_uniform() -> None:
    for words in ((0, 0, torch.arange(400)), (torch.arange(400), 0, 0), (7, torch.arange(400), 3)):
        u = uniform_at(keys(*words).unsqueeze(-1), torch.arange(500))  # [400, 500]
        for sample in (u.flatten(), u[:, 0], u[0], u[:, -1]):
            cells = (sample * 50).long().bincount(minlength=50)
            assert stats.chisquare(cells.numpy()).pvalue > 1e-5


def test_neighbouring_streams_are_uncorrelated() -> None:
    tokens = torch.arange(20000)
    base = uniform_at(keys(100, 1, 1000), tokens)
    for words in ((101, 1, 1000), (100, 2, 1000), (100, 1, 1001), (1000, 1, 100), (100, 0, 1001), (99, 2, 1000), (-100, 1, 1000)):
        other = uniform_at(keys(*words), tokens)
        for shift in (0, 1, 2, 16):
            correlation = torch.corrcoef(torch.stack([base[shift:], other[: len(other) - shift]]))[0, 1].item()
            assert abs(correlation) < 5 / math.sqrt(len(tokens)), words
            assert not (base[shift:] == other[: len(other) - shift]).any()


def test_every_key_bit_changes_half_of_the_hash() -> None:
    generator = torch.Generator().manual_seed(3)
    word = torch.randint(-(2**62), 2**62, (3, 2000), generator=generator)
    base = noise_key(*word)
    for argument in range(3):
        for bit in range(64):
            flipped = word.clone()
            flipped[argument] ^= 1 << bit if bit < 63 else -(2**63)
            changed = base ^ noise_key(*flipped)
            share = sum(((changed >> b) & 1).double().mean().item() for b in range(64)) / 64
            assert 0.49 < share < 0.51, (argument, bit)
