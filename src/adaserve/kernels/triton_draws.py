"""Triton kernels over vocabularies: the keyed draw, the likeliest tokens, the noise alone, and its keys.

The first two read the logits once, in blocks that many processors share, and leave one short row of results per block, which
torch finishes. The twins are gumbel.perturbed_argmax_twin, with the noise of runtime/noise.py, top.top_tokens_reference,
perturb.perturb_reference and noise.noise_key_reference.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
"""Tokens of a program."""
_KEYS = 128
WIDEST = 16
"""The most likeliest tokens that the kernel finds; it takes a pass over its block for each."""


@triton.jit
def _mix(word):
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB
    return word ^ (word >> 31)


@triton.jit
def _gumbel(key, column):
    counter = key.to(tl.uint64, bitcast=True) + (column + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    uniform = ((_mix(counter) >> 12) * 2 + 1).to(tl.float64) * (1.0 / 9007199254740992.0)  # (2h + 1) / 2^53
    return -tl.log(-tl.log(uniform))


@triton.jit(do_not_specialize=["size", "period"], do_not_specialize_on_alignment=["seed", "choice", "position", "key"])
def _key_kernel(seed, choice, position, key, size, period, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = at < size
    s = tl.load(seed + at % period, mask=live, other=0).to(tl.uint64, bitcast=True)
    c = tl.load(choice + at % period, mask=live, other=0).to(tl.uint64, bitcast=True)
    p = tl.load(position + at, mask=live, other=0).to(tl.uint64, bitcast=True)
    word = _mix(s + 0x9E3779B97F4A7C15)
    word = _mix(word + (c + 1) * 0x9E3779B97F4A7C15)
    word = _mix(word + (p + 1) * 0x9E3779B97F4A7C15)
    tl.store(key + at, word.to(tl.int64, bitcast=True), mask=live)


def noise_key(seed: Tensor, choice: Tensor, position: Tensor) -> Tensor:
    """Arguments and result as of noise.noise_key."""
    period = seed.numel()
    if seed.shape != choice.shape or seed.shape != position.shape[position.dim() - seed.dim() :]:
        raise ValueError(f"seeds {tuple(seed.shape)} and choices {tuple(choice.shape)} do not fit {tuple(position.shape)}")
    key = torch.empty(position.shape, dtype=torch.int64, device=position.device)
    if size := position.numel():
        words = seed.contiguous(), choice.contiguous(), position.contiguous()
        _key_kernel[(triton.cdiv(size, _KEYS),)](*words, key, size, period, _KEYS)
    return key


@triton.jit
def _draw_kernel(logits, stride, temperature, key, best, token, VOCABULARY, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    column = block * BLOCK + tl.arange(0, BLOCK)
    live = column < VOCABULARY
    score = tl.load(logits + row * stride + column, mask=live, other=float("-inf")).to(tl.float64)
    heat = tl.load(temperature + row)
    if heat > 0:
        score += heat * _gumbel(tl.load(key + row), column)
    score = tl.where(score != score, float("inf"), score)  # NaN wins, as in torch.argmax, and the caller finds it
    score = tl.where(live, score, float("-inf"))
    at = row * tl.num_programs(1) + block
    tl.store(best + at, tl.max(score, axis=0))
    tl.store(token + at, (block * BLOCK + tl.argmax(score, axis=0, tie_break_left=True)).to(tl.int64))


def perturbed_argmax(logits: Tensor, temperature: Tensor, key: Tensor) -> Tensor:
    """argmax over v of logits[r, v] + temperature[r] * gumbel(key[r], v), ties to the lower id.

    logits [R, V] of any floating dtype, temperature [R] float64, key [R] int64 (noise.noise_key) -> [R] int64.
    """
    rows, vocabulary = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    blocks = triton.cdiv(vocabulary, BLOCK)
    best = torch.empty(rows, blocks, dtype=torch.float64, device=logits.device)  # [R, blocks]
    token = torch.empty(rows, blocks, dtype=torch.int64, device=logits.device)  # [R, blocks]
    if rows:
        _draw_kernel[(rows, blocks)](
            logits, logits.stride(0), temperature.contiguous(), key.contiguous(), best, token, vocabulary, BLOCK
        )
    return token.gather(1, best.argmax(1, keepdim=True))[:, 0].clamp(max=vocabulary - 1)


@triton.jit
def _perturb_kernel(logits, stride, temperature, key, result, VOCABULARY, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = column < VOCABULARY
    score = tl.load(logits + row * stride + column, mask=live, other=0.0).to(tl.float64)
    heat = tl.load(temperature + row)
    if heat > 0:
        score += heat * _gumbel(tl.load(key + row), column)
    tl.store(result + row * VOCABULARY + column, score, mask=live)


def perturb(logits: Tensor, temperature: Tensor, key: Tensor) -> Tensor:
    """Logits plus noise: arguments and result as of perturb.perturb; temperature float64."""
    rows, vocabulary = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    result = torch.empty(rows, vocabulary, dtype=dtype, device=logits.device)  # [R, V]
    if rows:
        grid = rows, triton.cdiv(vocabulary, BLOCK)
        _perturb_kernel[grid](logits, logits.stride(0), temperature.contiguous(), key.contiguous(), result, vocabulary, BLOCK)
    return result


@triton.jit(do_not_specialize=["shared", "width"], do_not_specialize_on_alignment=["inverse_temperature", "temperature", "key"])
def _top_kernel(
    logits, stride, inverse_temperature, temperature, key, value, token, total, shared, width, VOCABULARY, NOISY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    owner = row // shared
    block = tl.program_id(1)
    column = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * stride + column, mask=column < VOCABULARY, other=float("-inf")).to(tl.float32)
    if NOISY:
        heat = tl.load(temperature + owner)
        if heat > 0:
            x = (x.to(tl.float64) + heat * _gumbel(tl.load(key + owner), column)).to(tl.float32)
    x = tl.where(x != x, float("-inf"), x)
    scale = tl.load(inverse_temperature + owner).to(tl.float32)
    top = tl.max(x, axis=0)
    # Differences before scaling; an infinite best counts once, and a block of nothing has no mass.
    gap = tl.where(x == top, 0.0, x - top) * scale
    mass = tl.sum(tl.where(x == float("-inf"), 0.0, tl.exp(gap)), axis=0)
    at = row * tl.num_programs(1) + block
    tl.store(total + at, mass)
    for rank in range(width):
        best, place = tl.max(x, axis=0, return_indices=True)  # ties to the lower id
        tl.store(value + at * width + rank, best)
        tl.store(token + at * width + rank, (block * BLOCK + place).to(tl.int64))
        x = tl.where(column == block * BLOCK + place, float("-inf"), x)


def block_winners(
    logits: Tensor, inverse_temperature: Tensor, temperature: Tensor, key: Tensor | None, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest tokens of every block of the vocabulary: value and token [R, blocks * width], total [R, blocks].

    logits [R, V], contiguous in V, R / n rows of each of n requests: inverse_temperature, temperature [n] float64; key [n] int64,
    or None for no noise. value float32: logits with noise, as of perturb.perturb; total float32: of each block the sum of
    exp((value - the block's best) * inverse). width is at most WIDEST; what a block lacks has the value -inf, and any token.
    """
    (rows, vocabulary), device = logits.shape, logits.device
    blocks = triton.cdiv(vocabulary, BLOCK)
    value = torch.empty(rows, blocks * width, dtype=torch.float32, device=device)  # [R, blocks * width]
    token = torch.empty(rows, blocks * width, dtype=torch.int64, device=device)  # [R, blocks * width]
    total = torch.empty(rows, blocks, dtype=torch.float32, device=device)  # [R, blocks]
    if rows:
        names = temperature if key is None else key
        _top_kernel[(rows, blocks)](
            logits, logits.stride(0), inverse_temperature, temperature, names, value, token, total,
            rows // len(inverse_temperature), width, vocabulary, key is not None, BLOCK,
        )  # fmt: skip
    return value, token, total


def top_tokens(logits: Tensor, inverse_temperature: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` likeliest tokens, at most WIDEST: arguments and result as of top.top_tokens; sums are float32."""
    value, token, total = block_winners(logits, inverse_temperature, inverse_temperature, None, width)
    best, pick = value.sort(dim=1, descending=True, stable=True)
    best, token = best[:, :width], token.gather(1, pick[:, :width])  # [R, width]
    top, scale = best[:, :1], inverse_temperature.float().unsqueeze(1)  # [R, 1]

    def scaled(x: Tensor) -> Tensor:
        return torch.where(x == top, 0.0, x - top) * scale

    mass = (total * scaled(value[:, ::width]).exp()).sum(1, keepdim=True)  # [R, 1]
    log_prob = torch.where(best == -torch.inf, -torch.inf, scaled(best) - mass.log())
    return token.clamp(max=logits.shape[1] - 1), log_prob.double()
