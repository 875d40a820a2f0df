"""A layer's products with all around them equal their torch twins, on a GPU or in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from adaserve.kernels import layer_products as twins
from adaserve.kernels.rotary import RotaryTable
from tests.devices import DEVICE, needs_gpu, needs_triton

pytestmark = needs_triton
# The interpreter multiplies no bfloat16.
DTYPES = [torch.float32, torch.bfloat16 if DEVICE.type == "cuda" else torch.float16]
EPS = 1e-5
ROWS = [0, 1, 3, 17, 64]


@pytest.fixture(scope="module")
def kernels():
    from adaserve.kernels import triton_layer

    return triton_layer


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Of the type, and as near the twin in float64 as the type goes: sums are float32, but what is multiplied is rounded."""
    assert found.dtype == dtype
    tolerance = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


class Draw:
    """Random tensors of a type, and the same in float64."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self._dtype = dtype
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0, around: float = 0.0) -> Tensor:
        return (torch.randn(*shape, generator=self._generator) * scale + around).to(self._dtype).to(DEVICE)

    def weight(self, outputs: int, depth: int) -> Tensor:
        return self(outputs, depth, scale=depth**-0.5)


def wide(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    ("hidden", "heads", "kv_heads", "head_dim", "biased", "norms"),
    [(576, 3, 1, 64, False, False), (64, 4, 4, 16, True, False), (192, 2, 1, 128, False, True), (128, 6, 2, 32, True, True)],
)
def test_qkv(
    kernels, hidden: int, heads: int, kv_heads: int, head_dim: int, biased: bool, norms: bool, rows: int, dtype: torch.dtype
) -> None:
    draw = Draw(dtype)
    x = draw(rows, hidden, scale=3.0)
    norm, width = draw(hidden, scale=0.2, around=1.0), (heads + 2 * kv_heads) * head_dim
    weight, bias = draw.weight(width, hidden), draw(width) if biased else None
    angle = torch.randn(50, head_dim // 2, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    cos, sin = angle.cos(), angle.sin()
    position, dest = (torch.arange(rows) * 7 % 50).to(DEVICE), torch.randperm(rows + 9)[:rows].to(DEVICE)
    pools = [draw(rows + 9, kv_heads, head_dim) for _ in range(2)]
    others = [pool.double() for pool in pools]
    per_head = [draw(head_dim, scale=0.2, around=1.0) if norms else None for _ in range(2)]
    q = kernels.normed_qkv(x, norm, weight, bias, cos, sin, position, dest, *pools, *per_head, EPS)
    table = RotaryTable(cos.double(), sin.double())
    weights = norm.double(), weight.double(), wide(bias)
    head_norms = [wide(n) for n in per_head]
    expected = twins.normed_qkv_reference(x.double(), *weights, table, position, dest, *others, *head_norms, EPS)
    assert q.shape == (rows, heads, head_dim)
    close(q, expected, dtype)
    for pool, other in zip(pools, others, strict=True):
        close(pool, other, dtype)  # other rows of the pool as they were


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("hidden", "intermediate", "biased"), [(576, 64, False), (64, 192, True), (320, 128, False)])
def test_gate(kernels, hidden: int, intermediate: int, biased: bool, rows: int, dtype: torch.dtype) -> None:
    draw = Draw(dtype)
    x, norm = draw(rows, hidden, scale=3.0), draw(hidden, scale=0.2, around=1.0)
    weight, bias = draw.weight(2 * intermediate, hidden), draw(2 * intermediate) if biased else None
    found = kernels.normed_gate(x, norm, weight, bias, EPS)
    assert found.shape == (rows, intermediate)
    close(found, twins.normed_gate_reference(x.double(), norm.double(), weight.double(), wide(bias), EPS), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("depth", "outputs", "biased"), [(576, 64, False), (64, 192, True), (320, 64, False)])
def test_add(kernels, depth: int, outputs: int, biased: bool, rows: int, dtype: torch.dtype) -> None:
    draw = Draw(dtype)
    x, residual = draw(rows, depth), draw(rows, outputs, scale=3.0)
    weight, bias = draw.weight(outputs, depth), draw(outputs) if biased else None
    before = residual.clone()
    found = kernels.product_add(x, weight, bias, residual)
    close(found, twins.product_add_reference(x.double(), weight.double(), wide(bias), residual.double()), dtype)
    assert torch.equal(residual, before)


def test_rows_do_not_mix(kernels) -> None:
    """A sick row spoils itself alone, though the rows of a tile are multiplied with one another."""
    draw = Draw(torch.float32)
    x, norm, weight = draw(20, 64), draw(64, around=1.0), draw.weight(128, 64)
    clean = kernels.normed_gate(x, norm, weight, None, EPS)
    x[5] = torch.nan
    found = kernels.normed_gate(x, norm, weight, None, EPS)
    assert found[5].isnan().all()
    assert torch.equal(found[torch.arange(20) != 5], clean[torch.arange(20) != 5])


def test_only_what_pays_and_fits_is_taken() -> None:
    for shape in ((576, 9, 3, 64, 1536), (896, 14, 2, 64, 4864)):
        assert twins.pays(*shape)
    assert not twins.pays(5120, 64, 8, 128, 27648)  # large
    for shape in ((576, 9, 3, 60, 1536), (570, 9, 3, 64, 1536), (576, 9, 3, 64, 1500), (32, 4, 2, 8, 48)):
        assert not twins.pays(*shape)


@needs_gpu
def test_one_compilation_serves_all_numbers_of_rows(kernels) -> None:
    """A compilation in the middle of serving would hold up everybody for a second."""
    draw = Draw(torch.bfloat16)
    norm, weight = draw(576, around=1.0), draw.weight(3072, 576)
    kernels.normed_gate(draw(1, 576), norm, weight, None, EPS)
    before = len(kernels._gate_kernel.device_caches[0][0])
    for rows in (2, 3, 16, 33, 64):
        kernels.normed_gate(draw(rows, 576), norm, weight, None, EPS)
    assert len(kernels._gate_kernel.device_caches[0][0]) == before
