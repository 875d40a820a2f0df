import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.kernels.linear import Linear, linear_reference

DTYPES = [torch.bfloat16, torch.float32]


def example(
    rows: int, outputs: int, depth: int, dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, depth, generator=draw),
        torch.randn(outputs, depth, generator=draw).to(dtype),
        torch.randn(outputs, generator=draw),
    )


def close(found: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Within the rounding of a float32 sum of K products, measured against float64."""
    exact = linear_reference(x.double(), weight, bias)
    size = x.abs().double() @ weight.abs().double().T + 1
    assert ((found - exact).abs() <= 2e-6 * size).all()


@given(
    rows=st.integers(1, 130),
    outputs=st.integers(1, 150),
    depth=st.integers(1, 200),
    dtype=st.sampled_from(DTYPES),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_native_equals_its_twin(rows: int, outputs: int, depth: int, dtype: torch.dtype, biased: bool, seed: int):
    x, weight, bias = example(rows, outputs, depth, dtype, seed)
    close(Linear(weight, bias if biased else None)(x), x, weight, bias if biased else None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "depth"), [(960, 576), (577, 1537), (100, 64), (8193, 48)])
def test_shapes_of_models(outputs: int, depth: int, dtype: torch.dtype):
    x, weight, bias = example(9, outputs, depth, dtype)
    close(Linear(weight, bias)(x), x, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "depth"), [(960, 576), (100, 77), (10007, 32)])
def test_a_row_does_not_depend_on_its_batch_mates(outputs: int, depth: int, dtype: torch.dtype):
    x, weight, bias = example(200, outputs, depth, dtype)
    linear = Linear(weight, bias)
    alone = torch.cat([linear(row[None]) for row in x])
    for rows in (2, 7, 8, 9, 16, 37, 64, 130, 193, 200):
        assert torch.equal(linear(x[:rows]), alone[:rows])
        assert torch.equal(linear(x[-rows:]), alone[-rows:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_outputs_alone(dtype: torch.dtype):
    x, weight, bias = example(5, 300, 40, dtype)
    linear = Linear(weight, bias)
    for count in (16, 48, 64, 160, 288):
        assert torch.equal(linear.first(x, count), linear(x)[:, :count])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize(("outputs", "depth"), [(48, 16), (49, 17), (7, 3), (1, 1)])
def test_the_weights_come_back(outputs: int, depth: int, dtype: torch.dtype):
    _, weight, _ = example(1, outputs, depth, dtype)
    assert torch.equal(Linear(weight).weight, weight)


def test_float64_is_exact_in_float64():
    x, weight, bias = example(5, 20, 30, torch.float64)
    assert torch.equal(Linear(weight, bias)(x.double()), linear_reference(x.double(), weight, bias))


def test_float64_rows_meet_packed_weights():
    x, weight, bias = example(5, 20, 30, torch.bfloat16)
    assert torch.equal(Linear(weight, bias)(x.double()), linear_reference(x.double(), weight, bias))


def test_no_rows():
    assert Linear(torch.randn(20, 30))(torch.empty(0, 30)).shape == (0, 20)


def test_a_row_of_nan_stays_alone():
    x, weight, _ = example(12, 60, 30, torch.bfloat16)
    clean = Linear(weight)(x)
    x[5] = torch.nan
    found = Linear(weight)(x)
    assert found[5].isnan().all()
    keep = torch.arange(12) != 5
    assert torch.equal(found[keep], clean[keep])


def test_rows_with_gaps_between():
    x, weight, _ = example(12, 60, 60, torch.bfloat16)
    assert torch.equal(Linear(weight)(x.T[:, :12].T.contiguous().T.contiguous().T), Linear(weight)(x))
    assert torch.equal(Linear(weight)(x[::2]), Linear(weight)(x)[::2])


def test_a_wrong_width_is_refused():
    linear = Linear(torch.randn(20, 30))
    with pytest.raises(ValueError, match="the weight is 20 x 30"):
        linear(torch.randn(3, 31))
    with pytest.raises(ValueError, match="the weight is 20 x 30"):
        linear.first(torch.randn(3, 30), 32)
