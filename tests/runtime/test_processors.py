import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaserve.request import SamplingParams
from adaserve.runtime import processors
from tests.oracles import sampling as oracle


def rows(seed: int, count: int, vocab_size: int, scale: float, steps: float | None, dtype: torch.dtype) -> torch.Tensor:
    """Random logits; with `steps`, rounded to multiples of it, so that many are equal."""
    logits = torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return (logits if steps is None else (logits / steps).round() * steps).to(dtype)


def column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


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
    params: list[tuple[float, int, float, float]], seed: int, vocab_size: int, scale: float, steps: float | None, dtype: torch.dtype
) -> None:
    logits = rows(seed, len(params), vocab_size, scale, steps, dtype)
    before = logits.clone()
    temperature, top_k, top_p, min_p = zip(*params, strict=True)
    most_k = max(top_k)
    found = processors.truncate(
        logits, column(list(temperature)), torch.tensor(top_k), column(list(top_p)), column(list(min_p)), most_k
    )
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
    found = processors.truncate(logits, column([1.0] * 3), torch.zeros(3, dtype=torch.int64), top_p, column([0.0] * 3), 0)
    for row, kept, p in zip(logits, found, top_p, strict=True):
        ordered = row.double().softmax(0).sort(descending=True).values
        size = int((ordered.cumsum(0) - ordered < p).sum())
        least = row.sort(descending=True).values[size - 1]
        assert torch.equal(kept > -math.inf, row >= least)


def test_equal_logits_stay_or_go_together() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0]])
    for top_k, top_p in ((1, 1.0), (2, 1.0), (0, 0.1), (2, 0.1)):
        found = processors.truncate(logits, column([1.0]), torch.tensor([top_k]), column([top_p]), column([0.0]), top_k)
        assert found.isfinite().tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 100.0])
def test_extreme_temperatures_keep_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([[-5.0, 7.0, 6.999]])
    found = processors.truncate(logits, column([temperature]), torch.tensor([0]), column([1e-6]), column([1.0]), 0)
    assert found[0, 1] == 7 and found[0, 0] == -math.inf and found[0, 2] == -math.inf


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 11), max_size=8),
    st.lists(st.integers(0, 11), max_size=8),
    st.floats(0.5, 2),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.dictionaries(st.integers(0, 11), st.floats(-100, 100), max_size=4),
    st.integers(0, 10**6),
)
def test_penalties_and_bias_equal_the_oracle(
    prompt: list[int], output: list[int], repetition: float, frequency: float, presence: float, bias: dict[int, float], seed: int
) -> None:
    logits = rows(seed, 1, 12, 3.0, None, torch.float64)
    ids = torch.tensor([[*bias, *([0] * (4 - len(bias)))]])
    numbers = column([[*bias.values(), *([0.0] * (4 - len(bias)))]])  # type: ignore[list-item]
    count = torch.tensor([[output.count(token) for token in range(12)]], dtype=torch.int32)
    seen = torch.tensor([[token in prompt or token in output for token in range(12)]])
    biased = processors.add_bias(logits, ids, numbers)
    found = processors.penalise(biased, seen, count, column([repetition]), column([frequency]), column([presence]))
    sampling = SamplingParams(
        temperature=0, repetition_penalty=repetition, frequency_penalty=frequency, presence_penalty=presence, logit_bias=bias
    )
    torch.testing.assert_close(
        found[0], column(oracle.process(logits[0].tolist(), sampling, prompt, output, [])), rtol=1e-12, atol=1e-12
    )


def test_forbidden_ids_are_impossible_only_where_active() -> None:
    logits = torch.zeros(2, 5)
    found = processors.forbid(logits, torch.tensor([[1, 3, 1], [2, 2, 2]]), torch.tensor([True, False]))
    assert found.isfinite().tolist() == [[True, False, True, False, True], [True] * 5]
