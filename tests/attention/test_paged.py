import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adaserve.attention.paged import attend, attend_reference
from adaserve.runtime.batch import TAIL_ROWS, ForwardBatch

SLOTS = 4


def make_batch(
    start: list[int], slot: list[int], prefix: Tensor, mask: Tensor, *, page_size: int, longest: int, draw: torch.Generator
) -> tuple[ForwardBatch, int]:
    """A batch over shuffled pages, and how many pool rows it needs."""
    per_slot = -(-longest // page_size) + 1
    pages = torch.randperm(SLOTS * per_slot, generator=draw).view(SLOTS, per_slot)
    rows = torch.zeros_like(prefix)
    tail_start = SLOTS * per_slot * page_size
    batch = ForwardBatch(
        rows, rows, prefix, mask, rows, torch.tensor(start), torch.tensor(slot, dtype=torch.int64), pages, page_size, tail_start
    )
    return batch, tail_start + SLOTS * TAIL_ROWS


@st.composite
def groups(draw: st.DrawFn) -> list[list[tuple[int, int]]]:
    """For every group its rows' (prefix, mask)."""
    prefix = st.integers(0, 130)
    mask = st.one_of(st.just(0), st.integers(0, 255), st.integers(-(2**63), 2**63 - 1))
    return draw(st.lists(st.lists(st.tuples(prefix, mask), max_size=14), min_size=0, max_size=SLOTS))


@given(
    groups=groups(),
    kv_heads=st.integers(1, 3),
    shared=st.sampled_from([1, 2, 3, 8]),
    head_dim=st.sampled_from([2, 8, 12, 16, 40, 64, 80, 128]),
    page_size=st.sampled_from([1, 4, 16, 32]),
    pool=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_native_equals_its_twin(groups, kv_heads: int, shared: int, head_dim: int, page_size: int, pool: torch.dtype, seed: int):
    draw = torch.Generator().manual_seed(seed)
    rows = [row for group in groups for row in group]
    start = torch.tensor([0, *(len(group) for group in groups)]).cumsum(0).tolist()
    prefix = torch.tensor([row[0] for row in rows], dtype=torch.int64)
    mask = torch.tensor([row[1] for row in rows], dtype=torch.int64)
    batch, pool_rows = make_batch(start, list(range(len(groups))), prefix, mask, page_size=page_size, longest=130, draw=draw)
    q = torch.randn(len(rows), kv_heads * shared, head_dim, generator=draw)
    keys, values = (torch.randn(pool_rows, kv_heads, head_dim, generator=draw).to(pool) for _ in range(2))
    exact = attend_reference(q.double(), keys.double(), values.double(), batch, head_dim**-0.5)
    torch.testing.assert_close(attend(q, keys, values, batch, head_dim**-0.5).double(), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attend_reference(q, keys, values, batch, head_dim**-0.5).double(), exact, rtol=1e-4, atol=1e-5)


def chunk(rows: int, before: int, pool: torch.dtype, heads: int = 9) -> tuple[Tensor, Tensor, Tensor, ForwardBatch]:
    """A prompt chunk of one request behind `before` known tokens: causal by position."""
    draw = torch.Generator().manual_seed(rows)
    prefix = before + 1 + torch.arange(rows)
    batch, pool_rows = make_batch(
        [0, rows], [1], prefix, torch.zeros_like(prefix), page_size=16, longest=before + rows, draw=draw
    )
    keys, values = (torch.randn(pool_rows, 3, 64, generator=draw).to(pool) for _ in range(2))
    return torch.randn(rows, heads, 64, generator=draw), keys, values, batch


def one_row(batch: ForwardBatch, row: int, slot: int) -> ForwardBatch:
    part = slice(row, row + 1)
    return ForwardBatch(
        batch.token[part],
        batch.position[part],
        batch.prefix[part],
        batch.mask[part],
        batch.dest[part],
        torch.tensor([0, 1]),
        torch.tensor([slot]),
        batch.pages,
        batch.page_size,
        batch.tail_start,
    )


@pytest.mark.parametrize("pool", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "before"), [(130, 0), (37, 300), (20, 5000)])
def test_a_row_of_a_chunk_does_not_depend_on_its_batch_mates(rows: int, before: int, pool: torch.dtype):
    q, keys, values, batch = chunk(rows, before, pool)
    together = attend(q, keys, values, batch, 0.125)
    for row in range(0, rows, 3):
        alone = attend(q[row : row + 1], keys, values, one_row(batch, row, 1), 0.125)
        assert torch.equal(alone[0], together[row])


@given(
    prefix=st.integers(0, 100), path=st.lists(st.integers(0, 62), min_size=1, max_size=9, unique=True), seed=st.integers(0, 99)
)
def test_a_key_counts_the_same_in_a_page_and_in_the_tail(prefix: int, path: list[int], seed: int):
    """What verification saw in the tail, plain decoding sees in a page, bit for bit: speculation changes nothing."""
    draw = torch.Generator().manual_seed(seed)
    length = prefix + len(path)
    mask = sum(1 << node for node in path)
    tree, pool_rows = make_batch([0, 1], [2], torch.tensor([prefix]), torch.tensor([mask]), page_size=16, longest=120, draw=draw)
    plain = ForwardBatch(
        tree.token,
        tree.position,
        torch.tensor([length]),
        torch.tensor([0]),
        tree.dest,
        tree.start,
        tree.slot,
        tree.pages,
        tree.page_size,
        tree.tail_start,
    )
    keys, values = (torch.randn(pool_rows, 3, 64, generator=draw).bfloat16() for _ in range(2))
    source = tree.tail_start + 2 * TAIL_ROWS + torch.tensor(sorted(path))
    position = prefix + torch.arange(len(path))
    dest = tree.pages[2, position // 16] * 16 + position % 16
    keys[dest], values[dest] = keys[source], values[source]
    q = torch.randn(1, 9, 64, generator=draw)
    assert torch.equal(attend(q, keys, values, tree, 0.125), attend(q, keys, values, plain, 0.125))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_row_may_not_see_cannot_harm_it(dtype: torch.dtype):
    """NaN left behind in the tail, in later positions and in a brother's key."""
    q, keys, values, batch = chunk(3, 30, torch.float32)
    batch = ForwardBatch(
        batch.token,
        batch.position,
        torch.tensor([20, 20, 25]),
        torch.tensor([1, 2, 0]),
        batch.dest,
        batch.start,
        batch.slot,
        batch.pages,
        batch.page_size,
        batch.tail_start,
    )
    q, keys, values = q.to(dtype), keys.to(dtype), values.to(dtype)
    clean = attend(q, keys, values, batch, 0.125)
    tail = batch.tail_start + TAIL_ROWS
    for pool in (keys, values):
        pool[tail + 2 :] = torch.nan
        pool[batch.pages[1, 1] * 16 + 9 :][:1] = torch.nan  # position 25, seen by nobody
    assert torch.equal(attend(q, keys, values, batch, 0.125), clean)


def test_a_sibling_of_nan_stays_clean():
    q, keys, values, batch = chunk(2, 20, torch.float32)
    batch = ForwardBatch(
        batch.token,
        batch.position,
        torch.tensor([20, 20]),
        torch.tensor([1, 2]),
        batch.dest,
        batch.start,
        batch.slot,
        batch.pages,
        batch.page_size,
        batch.tail_start,
    )
    clean = attend(q, keys, values, batch, 0.125)
    keys[batch.tail_start + TAIL_ROWS + 1] = torch.nan
    values[batch.tail_start + TAIL_ROWS + 1] = torch.nan
    found = attend(q, keys, values, batch, 0.125)
    assert torch.equal(found[0], clean[0])
    assert found[1].isnan().all()


def test_a_row_that_sees_nothing_is_zero():
    q, keys, values, batch = chunk(1, 0, torch.float32)
    batch = ForwardBatch(
        batch.token,
        batch.position,
        torch.tensor([0]),
        torch.tensor([0]),
        batch.dest,
        batch.start,
        batch.slot,
        batch.pages,
        batch.page_size,
        batch.tail_start,
    )
    for dtype in (torch.float32, torch.float64):
        assert (attend(q.to(dtype), keys.to(dtype), values.to(dtype), batch, 0.125) == 0).all()
