import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.kernels.beam import Kept, extend, extend_reference
from tests.devices import needs_native

ODD = [-torch.inf, torch.nan, 1e-9, -800.0]


@needs_native
@given(
    n=st.integers(0, 4),
    width=st.integers(1, 9),
    ranks=st.integers(1, 9),
    depth=st.integers(1, 4),
    few=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_native_equals_its_twin(n: int, width: int, ranks: int, depth: int, few: bool, seed: int):
    """The same nodes in the same order, also among equals; few ranks: a vocabulary smaller than the width."""
    draw = torch.Generator().manual_seed(seed)
    ranks = ranks if few else width
    above: tuple[Kept | None, Kept | None] = None, None
    room = torch.randint(0, depth + 1, (n,), generator=draw)
    for step in range(1, depth + 1):
        shape = (n, 1 if step == 1 else width, ranks)
        token = torch.randint(1, 100, shape, generator=draw)
        # A few values a step: ties are the rule, and exact ones, for paths of like edges multiply in the same order.
        values = torch.cat([-3 * torch.rand(3, generator=draw), torch.tensor(ODD)]).double()
        log_prob = values[torch.randint(len(values), shape, generator=draw)]
        found = extend(token, log_prob, room, above[0], step, width)
        expected = extend_reference(token, log_prob, room, above[1], step, width)
        for name in ("token", "parent", "mask"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        torch.testing.assert_close(found.path_prob, expected.path_prob, rtol=1e-14, atol=0.0)
        assert all(x.is_contiguous() for x in vars(found).values())
        above = found, expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_numbers_take_the_twin(dtype: torch.dtype):
    log_prob = torch.tensor([[[-0.5, -1.0]]], dtype=dtype)
    kept = extend(torch.tensor([[[3, 4]]]), log_prob, torch.tensor([1]), None, 1, 2)
    assert kept.path_prob.dtype == torch.float64
    assert torch.equal(kept.path_prob, log_prob[0].double().exp())
