"""Slow twins of the draw, in plain Python numbers and one row at a time."""

import math
from collections.abc import Sequence

from adaserve.request import SamplingParams

WORD = (1 << 64) - 1
STRIDE = 0x9E3779B97F4A7C15


def mix(word: int) -> int:
    """SplitMix64's finaliser on an unsigned Python integer."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)


def uniform(seed: int, choice: int, position: int, token: int) -> float:
    """The uniform number of one token's noise."""
    key = mix((seed + STRIDE) & WORD)
    for word in (choice, position):
        key = mix((key + (word + 1) * STRIDE) & WORD)
    bits = mix((key + (token + 1) * STRIDE) & WORD) >> 12
    return (2 * bits + 1) / 2**53


def gumbel(seed: int, choice: int, position: int, token: int) -> float:
    """The noise of one token."""
    return -math.log(-math.log(uniform(seed, choice, position, token)))


def softmax(logits: Sequence[float]) -> list[float]:
    """Probabilities of a row of logits."""
    greatest = max(logits)
    weights = [math.exp(x - greatest) for x in logits]
    total = math.fsum(weights)
    return [w / total for w in weights]


def process(
    logits: Sequence[float], sampling: SamplingParams, prompt: Sequence[int], output: Sequence[int], stop_ids: Sequence[int]
) -> list[float]:
    """Apply everything that acts before the draw to one row, step by step as processors.py lists it."""
    row = [float(x) for x in logits]
    for token, bias in sampling.logit_bias.items():
        if token < len(row):
            row[token] += bias
    for token in set(prompt) | set(output):
        row[token] = row[token] / sampling.repetition_penalty if row[token] > 0 else row[token] * sampling.repetition_penalty
    for token in set(output):
        row[token] -= sampling.frequency_penalty * list(output).count(token) + sampling.presence_penalty
    if len(output) < sampling.min_tokens:
        for token in stop_ids:
            if token < len(row):
                row[token] = -math.inf
    if sampling.temperature == 0:
        return row
    if 0 < sampling.top_k < len(row):
        least = sorted(row, reverse=True)[sampling.top_k - 1]
        row = [x if x >= least else -math.inf for x in row]
    if sampling.top_p < 1:
        greatest = max(row)
        p = softmax([(x - greatest) / sampling.temperature for x in row])
        above = {q: math.fsum(other for other in p if other > q) for q in set(p)}
        row = [x if above[q] < sampling.top_p else -math.inf for x, q in zip(row, p, strict=True)]
    greatest = max(row)
    p = [math.exp((x - greatest) / sampling.temperature) for x in row]
    return [x if q >= sampling.min_p else -math.inf for x, q in zip(row, p, strict=True)]


def draw(row: Sequence[float], temperature: float, seed: int, choice: int, position: int) -> int:
    """Draw from a processed row."""
    scores = [x + temperature * gumbel(seed, choice, position, t) if temperature else x for t, x in enumerate(row)]
    return scores.index(max(scores))


def walk(token: Sequence[int], parent: Sequence[int], row: Sequence[int], depth: Sequence[int], drawn: Sequence[int]) -> dict:
    """Walk every tree by hand; returns per request the tokens gained and the packed rows passed through."""
    result = {}
    for root in (v for v in range(len(token)) if depth[v] == 0):
        at, tokens, rows = root, [drawn[root]], [root]
        while True:
            children = [v for v in range(len(token)) if v != at and parent[v] == at and token[v] == drawn[at]]
            if not children:
                break
            (at,) = children
            rows.append(at)
            tokens.append(drawn[at])
        result[row[root]] = (tokens, rows)
    return result
