import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.kernels import gumbel
from adaserve.kernels.gumbel import finite_at, finite_at_reference, greedy_argmax, perturbed_argmax, perturbed_argmax_twin
from tests.devices import needs_native
from tests.oracles import sampling as oracle


def problem(
    seed: int, vocab_size: int, scale: float, heat: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Twelve rows, some of one key, of different temperatures."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(12, vocab_size, generator=generator, dtype=torch.float64) * scale).to(dtype)
    temperature = torch.rand(12, generator=generator, dtype=torch.float64) * heat
    temperature[3] = 0
    key = torch.randint(-(2**62), 2**62, (12,), generator=generator)
    key[5:9] = key[4]
    return logits, temperature, key, key % 5, key % 1000


@needs_native
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 100, 513, 8193]),
    st.sampled_from([0.0, 0.1, 3.0, 30.0, 1e30]),
    st.sampled_from([0.0, 1e-30, 0.7, 1.0, 100.0]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_native_equals_twin(seed: int, vocab_size: int, scale: float, heat: float, dtype: torch.dtype) -> None:
    rows = problem(seed, vocab_size, scale, heat, dtype)
    assert torch.equal(perturbed_argmax(*rows), perturbed_argmax_twin(*rows))
    rows[0][:, : vocab_size // 2] = -math.inf  # what truncation leaves
    assert torch.equal(perturbed_argmax(*rows), perturbed_argmax_twin(*rows))


@needs_native
def test_the_bound_prunes_without_losing_anyone() -> None:
    # Flat logits give every token the same chance: the hardest case for a bound. 300 rows of 10,007 tokens.
    rows = torch.arange(300)
    args = torch.zeros(300, 10007), torch.ones(300, dtype=torch.float64), rows, rows * 0, rows * 0
    assert torch.equal(perturbed_argmax(*args), perturbed_argmax_twin(*args))


@needs_native
def test_a_row_that_is_too_close_to_call_is_left_to_the_twin() -> None:
    # Two tokens whose scores agree to the last places: the logit makes up for the difference of their noise.
    logits = torch.full((1, 50), -1e3, dtype=torch.float64)
    logits[0, 7], logits[0, 31] = oracle.gumbel(1, 2, 3, 31), oracle.gumbel(1, 2, 3, 7)
    words = torch.tensor([1]), torch.tensor([2]), torch.tensor([3])
    found = gumbel._native(logits, torch.ones(1, dtype=torch.float64), gumbel.noise_key(*words), None)
    assert found is not None and found[1] is not None and found[1].tolist() == [0]
    args = logits, torch.ones(1, dtype=torch.float64), *words
    assert torch.equal(perturbed_argmax(*args), perturbed_argmax_twin(*args))


def test_strided_logits() -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    words = torch.arange(4), torch.zeros(4, dtype=torch.int64), torch.arange(4)
    heat = torch.ones(4, dtype=torch.float64)
    for view in (logits[:, ::3], logits[:, 50:150], logits[::2].expand(2, 300), logits.T[:100].T, logits[:1].expand(4, -1)):
        args = heat[: len(view)], *(word[: len(view)] for word in words)
        assert torch.equal(perturbed_argmax(view, *args), perturbed_argmax_twin(view.contiguous(), *args))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [slice(None), slice(5, 7)])
def test_rows_that_are_not_finite_give_the_twins_ids(bad: float, place: slice) -> None:
    logits, *rest = problem(1, 100, 1.0, 1.0, torch.float32)
    logits[[0, 3, 5], place] = bad
    assert torch.equal(perturbed_argmax(logits, *rest), perturbed_argmax_twin(logits, *rest))
    assert torch.equal(greedy_argmax(logits), logits.argmax(1))


@given(st.integers(0, 10**6), st.sampled_from([1, 5, 700]), st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
def test_greedy_takes_the_first_of_the_largest(seed: int, vocab_size: int, dtype: torch.dtype) -> None:
    logits = torch.randn(6, vocab_size, generator=torch.Generator().manual_seed(seed)).round().to(dtype)
    assert greedy_argmax(logits).tolist() == [row.index(max(row)) for row in logits.tolist()]


def test_no_rows() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert perturbed_argmax(torch.zeros(0, 9), nothing.double(), nothing, nothing, nothing).shape == (0,)
    assert greedy_argmax(torch.zeros(0, 9)).shape == (0,)


def test_equals_the_oracle() -> None:
    logits, temperature, seed, choice, position = problem(7, 60, 1.0, 2.0, torch.float64)
    found = perturbed_argmax(logits, temperature, seed, choice, position)
    assert found.tolist() == [
        oracle.draw(row, t, *words)
        for row, t, *words in zip(*(x.tolist() for x in (logits, temperature, seed, choice, position)), strict=True)
    ]


@needs_native
@given(st.integers(0, 10**6), st.integers(0, 9))
def test_what_is_finite_equals_its_twin(seed: int, rows: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    values = torch.tensor([0.0, -1.5, 1e38, math.nan, math.inf, -math.inf])
    logits = values[torch.randint(len(values), (rows, 7), generator=draw)]
    token = torch.randint(7, (rows,), generator=draw)
    assert torch.equal(finite_at(logits, token), finite_at_reference(logits, token))
