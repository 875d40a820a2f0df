import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.kernels.gate import silu_mul, silu_mul_reference


@given(
    rows=st.integers(0, 70), width=st.integers(1, 200), scale=st.sampled_from([0.1, 1.0, 30.0, 200.0]), seed=st.integers(0, 99)
)
def test_native_equals_its_twin(rows: int, width: int, scale: float, seed: int):
    gate_up = torch.randn(rows, 2 * width, generator=torch.Generator().manual_seed(seed)) * scale
    expected = silu_mul_reference(gate_up.double()).float()
    torch.testing.assert_close(silu_mul(gate_up), expected, rtol=2e-6, atol=1e-30)


def test_a_row_does_not_depend_on_its_batch_mates():
    gate_up = torch.randn(130, 2 * 77)
    assert torch.equal(silu_mul(gate_up), torch.cat([silu_mul(row[None]) for row in gate_up]))


def test_extremes():
    gate = torch.tensor([[0.0, 1000.0, -1000.0, torch.inf, -torch.inf, torch.nan, 88.0, -88.0]])
    found = silu_mul(torch.cat((gate, torch.ones_like(gate)), dim=1))[0]
    assert found[:4].tolist() == [0.0, 1000.0, 0.0, torch.inf]
    assert found[5].isnan()
    torch.testing.assert_close(found[6:], torch.tensor([88.0, 0.0]))


def test_float64():
    gate_up = torch.randn(3, 10, dtype=torch.float64)
    assert torch.equal(silu_mul(gate_up), silu_mul_reference(gate_up))
