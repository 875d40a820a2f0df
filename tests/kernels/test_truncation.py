import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.kernels.gumbel import perturbed_argmax, perturbed_argmax_twin
from adaserve.kernels.truncation import Truncation, truncate
from adaserve.request import SamplingParams
from tests.oracles import sampling as oracle


def rows(seed: int, count: int, vocab_size: int, scale: float, steps: float | None, dtype: torch.dtype) -> torch.Tensor:
    """Random logits; with `steps`, rounded to multiples of it, so that many are equal."""
    logits = torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return (logits if steps is None else (logits / steps).round() * steps).to(dtype)


def column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def truncation(top_k: list[int], top_p: list[float], min_p: list[float]) -> Truncation:
    return Truncation(torch.tensor(top_k), column(top_p), column(min_p), max(top_k))


TRUNCATION = st.tuples(
    st.sampled_from([0.0, 0.3, 1.0, 2.5]),  # temperature
    st.one_of(st.just(0), st.integers(1, 60)),  # top_k
    st.one_of(st.just(1.0), st.floats(0.0123, 0.987)),  # top_p
    st.one_of(st.just(0.0), st.floats(0.0123, 1.0)),  # min_p
)


@given(
    st.lists(TRUNCATION, min_size=1, max_size=4),
    st.integers(0, 10**6),
    st.sampled_from([2, 50, 301]),
    st.sampled_from([0.01, 1.0, 6.0]),
    st.sampled_from([None, 0.5]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_truncation_equals_the_oracle(
    params: list[tuple[float, int, float, float]],
    seed: int,
    vocab_size: int,
    scale: float,
    steps: float | None,
    dtype: torch.dtype,
) -> None:
    logits = rows(seed, len(params), vocab_size, scale, steps, dtype)
    before = logits.clone()
    temperature, top_k, top_p, min_p = zip(*params, strict=True)
    found = truncate(logits, column(list(temperature)), truncation(list(top_k), list(top_p), list(min_p)))
    assert torch.equal(logits, before)
    for row, kept, (t, k, p, m) in zip(logits.tolist(), found.tolist(), params, strict=True):
        expected = oracle.process(row, SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m), [], [], [])
        assert kept == expected


@pytest.mark.parametrize("vocab_size", [100, 8193, 10007, 49152, 151936])
@pytest.mark.parametrize("scale", [0.0, 0.05, 4.0])
def test_nucleus_of_large_vocabularies_equals_a_full_sort(vocab_size: int, scale: float) -> None:
    # From nuclei of a few tokens to ones that hold nearly the whole vocabulary, which no short prefix covers.
    logits = rows(vocab_size, 3, vocab_size, scale, None, torch.float32)
    top_p = column([0.03, 0.7, 0.999])
    found = truncate(logits, column([1.0] * 3), truncation([0] * 3, top_p.tolist(), [0.0] * 3))
    for row, kept, p in zip(logits, found, top_p, strict=True):
        ordered = row.double().softmax(0).sort(descending=True).values
        size = int((ordered.cumsum(0) - ordered < p).sum())
        least = row.sort(descending=True).values[size - 1]
        assert torch.equal(kept > -math.inf, row >= least)


def test_equal_logits_stay_or_go_together() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0]])
    for top_k, top_p in ((1, 1.0), (2, 1.0), (0, 0.1), (2, 0.1)):
        found = truncate(logits, column([1.0]), truncation([top_k], [top_p], [0.0]))
        assert found.isfinite().tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 100.0])
def test_extreme_temperatures_keep_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([[-5.0, 7.0, 6.999]])
    found = truncate(logits, column([temperature]), truncation([0], [1e-6], [1.0]))
    assert found[0, 1] == 7 and found[0, 0] == -math.inf and found[0, 2] == -math.inf


# The native draw reaches the same tokens by drawing first and looking afterwards.


@given(
    st.lists(TRUNCATION, min_size=1, max_size=6),
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 50, 1301, 8193]),
    st.sampled_from([0.01, 1.0, 6.0]),
    st.sampled_from([None, 0.5]),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
)
def test_truncated_draw_equals_the_twins(
    params: list[tuple[float, int, float, float]], seed: int, vocab_size: int, scale: float, steps: float | None,
    dtype: torch.dtype, one_key: bool,
) -> None:  # fmt: skip
    logits = rows(seed, len(params), vocab_size, scale, steps, dtype)
    logits[:, vocab_size // 3 : vocab_size // 2] = -math.inf
    temperature, top_k, top_p, min_p = (list(values) for values in zip(*params, strict=True))
    words = (
        torch.arange(len(params)) * (not one_key),
        torch.full((len(params),), seed),
        torch.zeros(len(params), dtype=torch.int64),
    )
    args = logits, column(temperature), *words, truncation(top_k, top_p, min_p)
    assert torch.equal(perturbed_argmax(*args), perturbed_argmax_twin(*args))


@pytest.mark.parametrize("top_k", [0, 1, 3, 900, 1024, 1025, 5000, 10006, 10007, 2**31 - 1])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.2, 1e-6])
def test_truncated_draw_at_the_edges(top_k: int, top_p: float) -> None:
    count, vocab_size = 40, 10007
    logits = rows(top_k, count, vocab_size, 1.0, 0.25 if top_k == 3 else None, torch.float32)
    logits[1] = logits[1].sort().values
    logits[2] = logits[2].sort(descending=True).values
    index = torch.arange(count)
    limits = truncation([top_k] * count, [top_p] * count, [0.0] * 20 + [1.0] * 10 + [0.001] * 10)
    args = logits, column([1.0] * count), index, index, index, limits
    assert torch.equal(perturbed_argmax(*args), perturbed_argmax_twin(*args))


def test_min_p_decides_exactly_near_its_threshold() -> None:
    # A crowd a millionth below the threshold would nearly always win; only the two tokens at and above it may.
    count, floor = 50, 1 + math.log(0.5)
    logits = torch.full((count, 2000), floor - 1e-6, dtype=torch.float64)
    logits[:, 7], logits[:, 900] = 1.0, floor + 1e-6
    index = torch.arange(count)
    args = logits, column([1.0] * count), index, index, index, truncation([0] * count, [1.0] * count, [0.5] * count)
    found = perturbed_argmax(*args)
    assert torch.equal(found, perturbed_argmax_twin(*args))
    assert set(found.tolist()) == {7, 900}
