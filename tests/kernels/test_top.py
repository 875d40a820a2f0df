import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.kernels.top import argmax, argmax_reference, top_tokens, top_tokens_reference


@given(
    rows=st.integers(0, 9),
    vocabulary=st.sampled_from([1, 5, 100, 255, 256, 257, 8193, 10007]),
    width=st.integers(1, 20),
    distinct=st.sampled_from([3, 50, 10**9]),
    seed=st.integers(0, 99),
)
def test_native_equals_its_twin(rows: int, vocabulary: int, width: int, distinct: int, seed: int):
    """Few distinct values make ties the rule: they go to the lower id."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randint(-distinct, distinct, (rows, vocabulary), generator=draw).float() * (20 / distinct)
    inverse = torch.rand(rows, generator=draw) * 2 + 0.1
    width = min(width, vocabulary)
    token, log_prob = top_tokens(logits, inverse, width)
    expected, expected_log_prob = top_tokens_reference(logits, inverse, width)
    assert torch.equal(token, expected)
    torch.testing.assert_close(log_prob, expected_log_prob, rtol=1e-6, atol=2e-6)
    assert log_prob.dtype == torch.float64
    assert torch.equal(argmax(logits), token[:, 0])
    assert torch.equal(argmax(logits), argmax_reference(logits))


def test_all_of_a_vocabulary_sums_to_one():
    _, log_prob = top_tokens(torch.randn(4, 300) * 5, torch.tensor([0.5, 1.0, 2.0, 10.0]), 300)
    torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)


def test_a_row_does_not_depend_on_its_batch_mates():
    logits, inverse = torch.randn(20, 10007), torch.rand(20) + 0.5
    token, log_prob = top_tokens(logits, inverse, 5)
    for row in range(20):
        alone, alone_log_prob = top_tokens(logits[row : row + 1], inverse[row : row + 1], 5)
        assert torch.equal(alone[0], token[row])
        assert torch.equal(alone_log_prob[0], log_prob[row])


@pytest.mark.parametrize("vocabulary", [6, 600])
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_odd_logits(vocabulary: int, odd: float):
    logits = torch.zeros(3, vocabulary)
    logits[0, 2] = odd
    logits[1, 1:3] = odd
    logits[2] = odd
    token, log_prob = top_tokens(logits, torch.ones(3), 4)
    expected, expected_log_prob = top_tokens_reference(logits, torch.ones(3), 4)
    assert torch.equal(token, expected)
    torch.testing.assert_close(log_prob, expected_log_prob, rtol=1e-6, atol=1e-6)
    assert torch.equal(argmax(logits), token[:, 0])
    assert ((token >= 0) & (token < vocabulary)).all()


def test_float64_logits_take_the_twin():
    logits = torch.randn(3, 100, dtype=torch.float64)
    assert torch.equal(top_tokens(logits, torch.ones(3), 3)[0], logits.topk(3).indices)
    assert torch.equal(argmax(logits), logits.argmax(-1))


@pytest.mark.parametrize("width", [0, 11])
def test_an_impossible_width_is_refused(width: int):
    with pytest.raises(ValueError, match="width"):
        top_tokens(torch.zeros(2, 10), torch.ones(2), width)
