"""The Triton kernels over rows equal their torch twins, on a GPU or in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from adaserve.kernels.gate import silu_mul_reference
from adaserve.kernels.norm import add_rms_norm_reference, embed_rms_norm_reference, rms_norm_reference
from adaserve.kernels.rotary import RotaryTable, rotate_and_store_reference
from tests.devices import DEVICE, needs_triton

pytestmark = needs_triton
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module")
def kernels():
    from adaserve.kernels import triton_rows

    return triton_rows


def close(found: Tensor, expected: Tensor) -> None:
    """Equal but for the last bits: sums in another order, and then rounded."""
    assert found.dtype == expected.dtype
    rough = found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=1.6e-2 if rough else 1e-5, atol=1e-2 if rough else 1e-5)


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 5), (3, 576), (7, 1030), (2, 5120)])
def test_norms(kernels, rows: int, width: int, dtype: torch.dtype) -> None:
    x, residual, weight = (normal(*s, dtype=dtype, seed=i) for i, s in enumerate(((rows, width), (rows, width), (width,))))
    close(kernels.rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5))
    found, total = kernels.add_rms_norm(x, residual, weight, 1e-5)
    expected, expected_total = add_rms_norm_reference(x, residual, weight, 1e-5)
    close(found, expected)
    close(total, expected_total)  # the interpreter truncates where a GPU rounds


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 5), (9, 576), (3, 1030)])
def test_embedding(kernels, rows: int, width: int, dtype: torch.dtype, stored: torch.dtype) -> None:
    embedding, weight = normal(7, width, dtype=stored), normal(width, dtype=dtype, seed=1)
    token = torch.randint(7, (rows + 1,), generator=torch.Generator().manual_seed(rows)).to(DEVICE)[1:]
    found, looked_up = kernels.embed_rms_norm(token, embedding, weight, 1e-5, dtype)
    expected, expected_rows = embed_rms_norm_reference(token, embedding, weight, 1e-5, dtype)
    close(found, expected)
    close(looked_up, expected_rows)  # exact, but that the interpreter truncates where a GPU rounds


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(0, 4), (1, 3), (5, 48), (3, 1500)])
def test_gate(kernels, rows: int, width: int, dtype: torch.dtype) -> None:
    gate_up = normal(rows, 2 * width, dtype=dtype) * 3
    close(kernels.silu_mul(gate_up), silu_mul_reference(gate_up))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (4, 2, 8), (3, 1, 20), (10, 2, 128)])
def test_rotary(kernels, heads: int, kv_heads: int, head_dim: int, norms: bool, dtype: torch.dtype) -> None:
    rows, pool_rows = 5, 40
    qkv = normal(rows, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    angle = normal(100, head_dim // 2, dtype=torch.float32, seed=1)
    table = RotaryTable(angle.cos(), angle.sin())
    position = torch.tensor([0, 99, 7, 7, 50], device=DEVICE)
    dest = torch.tensor([39, 0, 12, 13, 5], device=DEVICE)
    pools = [normal(pool_rows, kv_heads, head_dim, dtype=dtype, seed=2 + i) for i in range(2)]
    others = [pool.clone() for pool in pools]
    weights = [normal(head_dim, dtype=dtype, seed=4 + i) if norms else None for i in range(2)]
    q = kernels.rotate_and_store(qkv, table.cos, table.sin, position, dest, *pools, *weights, 1e-5)
    # The twin rounds the angles to the activations' dtype, so it is asked in float32.
    wide = [None if w is None else w.float() for w in weights]
    expected = rotate_and_store_reference(qkv.float(), table, position, dest, *others, *wide, 1e-5)
    close(q, expected.to(dtype))
    for pool, other in zip(pools, others, strict=True):
        close(pool, other)


def test_moves(kernels) -> None:
    pool = normal(3, 20, 2, 12, dtype=torch.bfloat16)
    expected = pool.clone()
    source, dest = torch.tensor([17, 3, 19, 19], device=DEVICE), torch.tensor([0, 5, 19, 19], device=DEVICE)
    expected[:, dest[:2]] = expected[:, source[:2]]
    kernels.move_rows(pool, source, dest)
    assert torch.equal(pool, expected)
    kernels.move_rows(pool, source[:0], dest[:0])
    assert torch.equal(pool, expected)
