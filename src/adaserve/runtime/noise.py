"""Keyed Gumbel noise: the randomness of a draw is a fixed function of (seed, choice, position, token id).

The hash is SplitMix64: a 64-bit finaliser over a counter that steps by an odd constant. The key (seed, choice, position) is
absorbed one word at a time with the same finaliser, so neighbouring seeds and positions start unrelated streams; the token id
is the counter. All arithmetic wraps at 64 bits, which torch does alike on every device, and so does C++.

`u = (2h + 1) / 2^53` with h of 52 bits is exact in float64, symmetric around 1/2, and never 0 or 1. In float32 it would round
to 1 once in 2^25 draws, which at a vocabulary of 49152 spoils about one token in 700.
"""

import torch
from torch import Tensor


def _signed(word: int) -> int:
    """Read an unsigned 64-bit constant as torch's int64 does."""
    return word - (1 << 64) if word >= 1 << 63 else word


STRIDE = _signed(0x9E3779B97F4A7C15)
"""Distance between the counters of neighbouring token ids: 2^64 over the golden ratio, odd."""

_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift(word: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own carries the sign."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def _mix(word: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64-bit words in which every input bit reaches every output bit."""
    word = (word ^ _shift(word, 30)) * _FIRST
    word = (word ^ _shift(word, 27)) * _SECOND
    return word ^ _shift(word, 31)


def noise_key(seed: Tensor, choice: Tensor, position: Tensor) -> Tensor:
    """Absorb (seed, choice, position), int64 each, into one 64-bit word: the name of a stream of noise, in position's shape.

    seed and choice are of that shape or of its last dimensions, and then serve all others alike.
    """
    if position.is_cuda:
        from adaserve.kernels import triton_draws

        return triton_draws.noise_key(seed, choice, position)
    return noise_key_reference(seed, choice, position)


def noise_key_reference(seed: Tensor, choice: Tensor, position: Tensor) -> Tensor:
    """The plain torch twin of `noise_key`: thirty operations, which on a GPU are as many launches."""
    key = _mix(seed + STRIDE)
    key = _mix(key + (choice + 1) * STRIDE)
    return _mix(key + (position + 1) * STRIDE)


def uniform_at(key: Tensor, token: Tensor) -> Tensor:
    """Uniform float64 numbers strictly between 0 and 1 for token ids; `key` and `token` broadcast."""
    bits = _shift(_mix(key + (token + 1) * STRIDE), 12)
    return (2 * bits + 1).double() * 2.0**-53


def gumbel_at(key: Tensor, token: Tensor) -> Tensor:
    """Standard Gumbel float64 numbers for token ids; `key` and `token` broadcast."""
    return -(-uniform_at(key, token).log()).log()


def gumbel_noise(seed: Tensor, choice: Tensor, position: Tensor, vocab_size: int) -> Tensor:
    """Noise that perturbs the logits of the token at absolute `position`, float64.

    seed, choice, position: int64 of one shape [...]; the result is [..., vocab_size]. It does not depend on the vocabulary size
    otherwise: the first V entries of a longer row are the row for V.
    """
    token = torch.arange(vocab_size, device=position.device)  # [V]
    return gumbel_at(noise_key(seed, choice, position).unsqueeze(-1), token)
