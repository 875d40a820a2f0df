import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.kernels.norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference


@given(rows=st.integers(0, 70), width=st.integers(1, 700), seed=st.integers(0, 99))
def test_native_equals_its_twin(rows: int, width: int, seed: int):
    draw = torch.Generator().manual_seed(seed)
    x, residual, weight = (torch.randn(*shape, generator=draw) for shape in ((rows, width), (rows, width), (width,)))
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5), rtol=1e-5, atol=1e-6)
    normed, total = add_rms_norm(x, residual, weight, 1e-5)
    expected, expected_total = add_rms_norm_reference(x, residual, weight, 1e-5)
    torch.testing.assert_close(normed, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(total, expected_total)


@pytest.mark.parametrize("width", [576, 577, 5])
def test_a_row_does_not_depend_on_its_batch_mates(width: int):
    x, residual, weight = torch.randn(130, width), torch.randn(130, width), torch.randn(width)
    assert torch.equal(rms_norm(x, weight, 1e-5), torch.cat([rms_norm(row[None], weight, 1e-5) for row in x]))
    alone = [add_rms_norm(x[i : i + 1], residual[i : i + 1], weight, 1e-5)[0] for i in range(130)]
    assert torch.equal(add_rms_norm(x, residual, weight, 1e-5)[0], torch.cat(alone))


def test_adding_first_is_the_same_as_adding_inside():
    x, residual, weight = torch.randn(9, 100), torch.randn(9, 100), torch.randn(100)
    assert torch.equal(add_rms_norm(x, residual, weight, 1e-5)[0], rms_norm(x + residual, weight, 1e-5))


def test_other_dtypes_take_the_twin():
    x, weight = torch.randn(3, 50), torch.randn(50)
    assert rms_norm(x.double(), weight.double(), 1e-5).dtype == torch.float64
    torch.testing.assert_close(rms_norm(x.double(), weight, 1e-5).float(), rms_norm(x, weight, 1e-5))
    torch.testing.assert_close(rms_norm(x, weight.bfloat16(), 1e-5), rms_norm(x, weight.bfloat16().float(), 1e-5))
    torch.testing.assert_close(rms_norm(x.T.contiguous().T, weight, 1e-5), rms_norm(x, weight, 1e-5))


def test_nan_stays_in_its_row():
    x = torch.randn(4, 50)
    x[2, 7] = torch.nan
    found = rms_norm(x, torch.ones(50), 1e-5)
    assert found[2].isnan().all()
    assert not found[[0, 1, 3]].isnan().any()
