import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.kernels.linear import (
    CHOICE,
    Linear,
    Path,
    available_paths,
    choose,
    linear_reference,
    products_status,
    tile_rows,
)
from adaserve.kernels.quantized import BLOCK, QuantizedWeight, stack

DTYPES = [torch.bfloat16, torch.float32]
PATHS = available_paths()
WAYS = [
    (path, dtype) for path in PATHS if path is not Path.INT8 for dtype in DTYPES if dtype is not torch.float32 or path is Path.FMA
]
"""How matrices of plain numbers are multiplied here."""
NATIVE = pytest.mark.skipif(not PATHS, reason="no native kernels here")
TILES = pytest.mark.skipif(not tile_rows(), reason="no tiles of bytes here")
ROUNDING = {Path.AMX: 2**-8, Path.DOT: 2**-8, Path.INT8: 2**-7, Path.FMA: 2e-6}
"""Of a row's numbers and its sums, relative to the sum of the products' sizes."""


def example(
    rows: int, outputs: int, depth: int, dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, depth, generator=draw),
        torch.randn(outputs, depth, generator=draw).to(dtype),
        torch.randn(outputs, generator=draw),
    )


def blocks(outputs: int, steps: int, offsets: bool, seed: int = 0) -> QuantizedWeight:
    draw = torch.Generator().manual_seed(seed)
    low, high = (0, 16) if offsets else (-128, 128)
    codes = torch.randint(low, high, (outputs, steps * BLOCK), generator=draw, dtype=torch.uint8 if offsets else torch.int8)
    scale, offset = (torch.randn(outputs, steps, generator=draw).half() for _ in range(2))
    return QuantizedWeight(codes, scale, offset if offsets else None)


def close(found: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, path: Path = Path.FMA) -> None:
    """Within the rounding of the path, measured against float64."""
    exact = linear_reference(x.double(), weight, bias)
    size = x.abs().double() @ weight.abs().double().T + 1
    assert ((found - exact).abs() <= ROUNDING[path] * size).all()


def rounded(x: torch.Tensor, path: Path) -> torch.Tensor:
    """The rows that a path multiplies by, in float64."""
    if path is Path.FMA:
        return x.double()
    if path is not Path.INT8:
        return x.bfloat16().double()
    parts = x.unflatten(1, (-1, BLOCK))  # [M, K / 32, 32]
    most = parts.abs().amax(2, keepdim=True)
    codes = torch.where(most > 0, parts * (127 / most), 0.0).round()
    return (codes.double() * (most / 127).double()).flatten(1)


@NATIVE
@given(
    rows=st.integers(1, 130),
    outputs=st.integers(1, 150),
    depth=st.integers(1, 200),
    way=st.sampled_from(WAYS),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_native_equals_its_twin(
    rows: int, outputs: int, depth: int, way: tuple[Path, torch.dtype], biased: bool, seed: int
) -> None:
    path, dtype = way
    x, weight, bias = example(rows, outputs, depth, dtype, seed)
    found = Linear(weight, bias if biased else None, path=path)(x)
    narrow = Path.FMA if dtype is torch.float32 else path
    close(found, rounded(x, narrow), weight, bias if biased else None)


@NATIVE
@given(
    rows=st.integers(1, 130),
    outputs=st.integers(1, 150),
    steps=st.integers(1, 6),
    offsets=st.booleans(),
    path=st.sampled_from(PATHS),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_blocks_equal_their_twin(rows: int, outputs: int, steps: int, offsets: bool, path: Path, biased: bool, seed: int) -> None:
    """Of the rounded rows, to float32's precision; what rounding rows costs is the next test's."""
    weight = blocks(outputs, steps, offsets, seed)
    x, _, bias = example(rows, outputs, steps * BLOCK, torch.float32, seed)
    linear = Linear(weight, bias if biased else None, path=path)
    exact = weight.dequantize() if path is Path.INT8 else weight.dequantize().bfloat16()
    used = rounded(x, path)
    size = used.abs() @ (weight.codes.abs() * weight.scale.float().abs().repeat_interleave(BLOCK, 1)).double().T
    if weight.offset is not None:
        size += used.abs() @ weight.offset.double().abs().repeat_interleave(BLOCK, 1).T
    expected = linear_reference(used, exact, bias if biased else None)
    assert ((linear(x) - expected).abs() <= 4e-6 * (size + 1)).all()
    assert torch.equal(linear.weight, weight.dequantize().bfloat16())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("offsets", [True, False])
def test_rounding_rows_costs_little(path: Path, offsets: bool) -> None:
    weight = blocks(100, 18, offsets)
    x, _, _ = example(20, 100, 18 * BLOCK, torch.float32)
    exact = x.double() @ weight.dequantize().double().T
    error = ((Linear(weight, path=path)(x) - exact).std() / exact.std()).item()
    assert error < {Path.FMA: 0.003, Path.DOT: 0.004, Path.AMX: 0.004, Path.INT8: 0.008}[path]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "depth"), [(960, 576), (577, 1537), (100, 64), (8193, 48)])
def test_shapes_of_models(outputs: int, depth: int, dtype: torch.dtype) -> None:
    x, weight, bias = example(9, outputs, depth, dtype)
    path = Path.FMA if dtype is torch.float32 else (choose(None, quantised=False) or Path.FMA)
    close(Linear(weight, bias)(x), rounded(x, path), weight, bias)


def alike(linear: Linear, x: torch.Tensor) -> None:
    """A row's result has the same bits alone and in any batch."""
    alone = torch.cat([linear(row[None]) for row in x])
    for rows in (2, 7, 8, 9, 10, 11, 12, 13, 16, 17, 20, 21, 32, 33, 37, 64, 130, 193, 200):
        assert torch.equal(linear(x[:rows]), alone[:rows])
        assert torch.equal(linear(x[-rows:]), alone[-rows:])


@pytest.mark.parametrize(("path", "dtype"), WAYS)
@pytest.mark.parametrize(("outputs", "depth"), [(960, 576), (100, 77), (10007, 32)])
def test_a_row_does_not_depend_on_its_batch_mates(outputs: int, depth: int, path: Path, dtype: torch.dtype) -> None:
    x, weight, bias = example(200, outputs, depth, dtype)
    alike(Linear(weight, bias, path=path), x)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize(("outputs", "steps"), [(960, 18), (100, 3), (10007, 1)])
def test_a_row_times_blocks_does_not_depend_on_its_batch_mates(outputs: int, steps: int, path: Path, offsets: bool) -> None:
    x, _, bias = example(200, outputs, steps * BLOCK, torch.float32)
    alike(Linear(blocks(outputs, steps, offsets), bias, path=path), x)


@TILES
@given(
    more=st.integers(0, 130),
    outputs=st.integers(1, 150),
    steps=st.integers(1, 9),
    offsets=st.booleans(),
    biased=st.booleans(),
    size=st.sampled_from([1e-30, 1.0, 1e30]),
    seed=st.integers(0, 99),
)
def test_tiles_of_bytes_give_the_bits_of_vectors(
    more: int, outputs: int, steps: int, offsets: bool, biased: bool, size: float, seed: int
) -> None:
    """So many rows at once take tiles; the same rows, fewer at a time, take vectors."""
    x, _, bias = example(tile_rows() + more, outputs, steps * BLOCK, torch.float32, seed)
    x *= size
    x[::5, :BLOCK] = 0.0
    x[3::7] = x[3::7].sign()  # codes of 127 and -127 alone
    linear = Linear(blocks(outputs, steps, offsets, seed), bias if biased else None, path=Path.INT8)
    by_vectors = torch.cat([linear(part) for part in x.split(tile_rows() - 1)])
    assert torch.equal(linear(x), by_vectors)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("rows", [8, 24])
def test_what_is_not_finite_stays_in_its_row(path: Path, offsets: bool, rows: int) -> None:
    weight = blocks(60, 2, offsets)
    x, _, _ = example(rows, 60, 2 * BLOCK, torch.float32)
    clean = Linear(weight, path=path)(x)
    x[3, 40], x[5, 1], x[6] = torch.inf, torch.nan, 0.0
    found = Linear(weight, path=path)(x)
    assert not found[[3, 5]].isfinite().any(1).all() and found[5].isnan().all()
    assert (found[6] == 0).all()
    keep = [row for row in range(rows) if row not in (3, 5, 6)]
    assert torch.equal(found[keep], clean[keep])


@pytest.mark.parametrize("path", PATHS)
def test_the_first_outputs_of_blocks_alone(path: Path) -> None:
    x, _, bias = example(5, 300, 64, torch.float32)
    linear = Linear(blocks(300, 2, False), bias, path=path)
    for count in (16, 48, 64, 160, 288):
        assert torch.equal(linear.first(x, count), linear(x)[:, :count])


def test_stacked_blocks_are_the_products_side_by_side() -> None:
    parts = [blocks(outputs, 2, True, outputs) for outputs in (30, 17)]
    whole = stack(parts)
    assert whole is not None
    x, _, _ = example(5, 1, 64, torch.float32)
    assert torch.equal(Linear(whole)(x), torch.cat([Linear(part)(x) for part in parts], 1))
    assert stack([parts[0], blocks(3, 2, False)]) is None


@NATIVE
def test_the_environment_names_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in PATHS:
        monkeypatch.setenv(CHOICE, path.value)
        assert choose(None, quantised=True) is path
        assert choose(None, quantised=False) is not Path.INT8
        assert path.value in products_status()
    missing = [path for path in Path if path not in PATHS]
    for path in missing:
        with pytest.raises(ValueError, match="not available here; these are: .*fma"):
            Linear(torch.randn(4, 4), path=path)
    monkeypatch.setenv(CHOICE, "nonsense")
    with pytest.raises(ValueError, match="ADASERVE_PRODUCTS=nonsense: one of"):
        choose(None, quantised=True)


@pytest.mark.skipif(Path.INT8 not in PATHS, reason="no products of bytes here")
def test_quantised_weights_are_multiplied_in_bytes_where_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHOICE, raising=False)
    assert choose(None, quantised=True) is Path.INT8
    assert choose(None, quantised=False) is not Path.INT8
    assert ("tiles" in products_status()) == bool(tile_rows())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_outputs_alone(dtype: torch.dtype) -> None:
    x, weight, bias = example(5, 300, 40, dtype)
    linear = Linear(weight, bias)
    for count in (16, 48, 64, 160, 288):
        assert torch.equal(linear.first(x, count), linear(x)[:, :count])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize(("outputs", "depth"), [(48, 16), (49, 17), (7, 3), (1, 1)])
def test_the_weights_come_back(outputs: int, depth: int, dtype: torch.dtype) -> None:
    _, weight, _ = example(1, outputs, depth, dtype)
    assert torch.equal(Linear(weight).weight, weight)


def test_float64_is_exact_in_float64() -> None:
    x, weight, bias = example(5, 20, 30, torch.float64)
    assert torch.equal(Linear(weight, bias)(x.double()), linear_reference(x.double(), weight, bias))


def test_float64_rows_meet_packed_weights() -> None:
    x, weight, bias = example(5, 20, 30, torch.bfloat16)
    assert torch.equal(Linear(weight, bias)(x.double()), linear_reference(x.double(), weight, bias))


def test_no_rows() -> None:
    assert Linear(torch.randn(20, 30))(torch.empty(0, 30)).shape == (0, 20)


def test_a_row_of_nan_stays_alone() -> None:
    x, weight, _ = example(12, 60, 30, torch.bfloat16)
    clean = Linear(weight)(x)
    x[5] = torch.nan
    found = Linear(weight)(x)
    assert found[5].isnan().all()
    keep = torch.arange(12) != 5
    assert torch.equal(found[keep], clean[keep])


def test_rows_with_gaps_between() -> None:
    x, weight, _ = example(12, 60, 60, torch.bfloat16)
    assert torch.equal(Linear(weight)(x.T[:, :12].T.contiguous().T.contiguous().T), Linear(weight)(x))
    assert torch.equal(Linear(weight)(x[::2]), Linear(weight)(x)[::2])


def test_a_wrong_width_is_refused() -> None:
    linear = Linear(torch.randn(20, 30))
    with pytest.raises(ValueError, match="the weight is 20 x 30"):
        linear(torch.randn(3, 31))
    with pytest.raises(ValueError, match="the weight is 20 x 30"):
        linear.first(torch.randn(3, 30), 32)
