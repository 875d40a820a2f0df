import math

import pytest
import torch

from adaserve.runtime.logprobs import token_logprobs
from tests.oracles import sampling as oracle


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("alternatives", [0, 1, 5, 20])
def test_equals_plain_log_softmax(dtype: torch.dtype, alternatives: int) -> None:
    logits = torch.randn(4, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    token = torch.tensor([0, 3, 11, 5])
    for row, own, found in zip(logits.tolist(), token.tolist(), token_logprobs(logits, token, alternatives), strict=True):
        logprob = [math.log(p) for p in oracle.softmax(row)]
        assert found.token == own
        assert found.logprob == pytest.approx(logprob[own], rel=1e-5)
        assert found.rank == 1 + sum(other > row[own] for other in row)
        best = sorted(range(12), key=lambda t: (-row[t], t))[:alternatives]
        if dtype != torch.bfloat16:  # where bfloat16 has equals, any of them may be last in the list
            assert [t for t, _ in found.top] == best
        assert [p for _, p in found.top] == pytest.approx([logprob[t] for t in best], rel=1e-5)


def test_impossible_tokens_and_equals() -> None:
    (found,) = token_logprobs(torch.tensor([[0.0, -math.inf, 0.0, -1.0]]), torch.tensor([2]), 2)
    assert found.rank == 1 and [t for t, _ in found.top] == [0, 2]
    (found,) = token_logprobs(torch.tensor([[0.0, -math.inf, 0.0, -1.0]]), torch.tensor([1]), 0)
    assert found.rank == 4 and found.logprob == -math.inf and found.top == ()
