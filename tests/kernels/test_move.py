import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.kernels.move import move_rows, move_rows_reference


@given(
    count=st.integers(0, 30),
    layers=st.integers(1, 5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_native_equals_its_twin(count: int, layers: int, dtype: torch.dtype, seed: int):
    """Sources and destinations may overlap: every row is read before any is written."""
    draw = torch.Generator().manual_seed(seed)
    pool = torch.randn(layers, 40, 3, 8, generator=draw).to(dtype)
    source = torch.randint(40, (count,), generator=draw)
    dest = torch.randperm(40, generator=draw)[:count]
    expected = pool.clone()
    move_rows_reference(expected, source, dest)
    move_rows(pool, source, dest)
    assert torch.equal(pool, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_rows(dtype: torch.dtype):
    pool = torch.randn(30, 5000, 3, 64).to(dtype)
    source, dest = torch.arange(4000, 4100), torch.randperm(4000)[:100]
    expected = pool[:, source].clone()
    move_rows(pool, source, dest)
    assert torch.equal(pool[:, dest], expected)
