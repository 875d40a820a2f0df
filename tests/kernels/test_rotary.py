import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adaserve.kernels.rotary import RotaryTable, rotate_and_store, rotate_and_store_reference

POOL, LENGTH = 300, 50


def example(rows: int, heads: int, kv_heads: int, head_dim: int, pool: torch.dtype, normed: bool, seed: int = 0) -> tuple:
    draw = torch.Generator().manual_seed(seed)
    angle = torch.rand(LENGTH, head_dim // 2, generator=draw) * 7
    norms = [torch.rand(head_dim, generator=draw) + 0.5 if normed else None for _ in range(2)]
    return (
        torch.randn(rows, (heads + 2 * kv_heads) * head_dim, generator=draw),
        RotaryTable(angle.cos(), angle.sin()),
        torch.randint(LENGTH, (rows,), generator=draw),
        torch.randperm(POOL, generator=draw)[:rows],
        torch.randn(POOL, kv_heads, head_dim, generator=draw).to(pool),
        torch.randn(POOL, kv_heads, head_dim, generator=draw).to(pool),
        *norms,
        1e-6,
    )


@given(
    rows=st.integers(0, 40),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    half=st.sampled_from([1, 3, 4, 8, 16, 20, 32, 64]),
    pool=st.sampled_from([torch.float32, torch.bfloat16]),
    normed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_native_equals_its_twin(rows: int, kv_heads: int, group: int, half: int, pool: torch.dtype, normed: bool, seed: int):
    arguments = example(rows, kv_heads * group, kv_heads, 2 * half, pool, normed, seed)
    other = tuple(x.clone() if isinstance(x, Tensor) else x for x in arguments)
    found, expected = rotate_and_store(*arguments), rotate_and_store_reference(*other)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
    loose = {"rtol": 1e-2, "atol": 1e-6} if pool == torch.bfloat16 else {"rtol": 1e-5, "atol": 2e-6}
    torch.testing.assert_close(arguments[4], other[4], **loose)
    assert torch.equal(arguments[5], other[5]), "values are only rounded"


@pytest.mark.parametrize("normed", [False, True])
def test_a_row_does_not_depend_on_its_batch_mates(normed: bool):
    qkv, table, position, dest, keys, values, *rest = example(100, 9, 3, 64, torch.bfloat16, normed)
    lonely_keys = keys.clone()
    together = rotate_and_store(qkv, table, position, dest, keys, values, *rest)
    for row in range(100):
        part = slice(row, row + 1)
        alone = rotate_and_store(qkv[part], table, position[part], dest[part], lonely_keys, values, *rest)
        assert torch.equal(alone, together[part])
    assert torch.equal(keys, lonely_keys)


def test_rotation_keeps_inner_products_of_equal_distance():
    """The property that rotary embedding is for: <q at i, k at j> depends on i - j."""
    angle = torch.arange(LENGTH).unsqueeze(1) * torch.tensor([1.0, 0.1, 0.01, 0.001])
    table = RotaryTable(angle.cos(), angle.sin())
    row = torch.randn(1, 3 * 8)
    products = []
    for q_at, k_at in ((5, 2), (35, 32)):
        keys = torch.zeros(2, 1, 8)
        qkv = row.repeat(2, 1)
        q = rotate_and_store(
            qkv, table, torch.tensor([q_at, k_at]), torch.tensor([0, 1]), keys, torch.zeros(2, 1, 8), None, None, 0.0
        )
        products.append((q[0, 0] @ keys[1, 0]).item())
    assert products[0] == pytest.approx(products[1], abs=1e-4)


def test_rows_elsewhere_in_the_pool_stay():
    qkv, table, position, dest, keys, values, *rest = example(7, 2, 1, 8, torch.float32, False)
    before = keys.clone()
    rotate_and_store(qkv, table, position, dest, keys, values, *rest)
    others = torch.ones(POOL, dtype=torch.bool).index_fill(0, dest, False)
    assert torch.equal(keys[others], before[others])


def test_float64():
    qkv, table, position, dest, keys, values, *_ = example(7, 2, 1, 8, torch.float64, False)
    wide = RotaryTable(table.cos.double(), table.sin.double())
    q = rotate_and_store(qkv.double(), wide, position, dest, keys, values, None, None, 1e-6)
    assert q.dtype == keys.dtype == torch.float64
    narrow = rotate_and_store(qkv, table, position, dest, keys.float(), values.float(), None, None, 1e-6)
    torch.testing.assert_close(narrow, q.float())
