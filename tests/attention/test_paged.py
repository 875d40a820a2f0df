import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adaserve.attention.paged import attend, attend_reference, attention_path
from adaserve.kernels.linear import CHOICE, Path, available_paths
from adaserve.runtime.batch import TAIL_ROWS, ForwardBatch
from tests.devices import needs_native

SLOTS = 4
PATHS = [path for path in (Path.FMA, Path.DOT) if path in available_paths()] or [None]
"""Ways of this machine to attend; None: the torch twin."""
WAYS = [(torch.float32, PATHS[0]), *((torch.bfloat16, path) for path in PATHS)]


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
    way=st.sampled_from(WAYS),
    seed=st.integers(0, 99),
)
def test_native_equals_its_twin(groups, kv_heads: int, shared: int, head_dim: int, page_size: int, way, seed: int):
    pool, path = way
    draw = torch.Generator().manual_seed(seed)
    rows = [row for group in groups for row in group]
    start = torch.tensor([0, *(len(group) for group in groups)]).cumsum(0).tolist()
    prefix = torch.tensor([row[0] for row in rows], dtype=torch.int64)
    mask = torch.tensor([row[1] for row in rows], dtype=torch.int64)
    batch, pool_rows = make_batch(start, list(range(len(groups))), prefix, mask, page_size=page_size, longest=130, draw=draw)
    q = torch.randn(len(rows), kv_heads * shared, head_dim, generator=draw)
    keys, values = (torch.randn(pool_rows, kv_heads, head_dim, generator=draw).to(pool) for _ in range(2))
    rounded = path is Path.DOT
    found = attend(q, keys, values, batch, head_dim**-0.5, path=path)
    exact = attend_reference(q.double(), keys.double(), values.double(), batch, head_dim**-0.5, rounded=rounded)
    if rounded:  # the last bit of a score may decide which way a weight is rounded: by a part in 256, of values below 5
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-2)
    else:
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(attend_reference(q, keys, values, batch, head_dim**-0.5).double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(Path.DOT not in PATHS, reason="no products of bfloat16 pairs here")
@pytest.mark.parametrize(("rows", "before"), [(1, 0), (40, 0), (37, 300)])
def test_pairs_equal_their_twin_but_for_ties_of_rounding(rows: int, before: int):
    q, keys, values, batch = chunk(rows, before, torch.bfloat16)
    found = attend(q, keys, values, batch, 0.125, path=Path.DOT)
    twin = attend_reference(q.double(), keys.double(), values.double(), batch, 0.125, rounded=True)
    error = (found.double() - twin).abs()
    assert error.quantile(0.95) < 1e-6
    assert error.max() < 1e-3
    exact = attend_reference(q.double(), keys.double(), values.double(), batch, 0.125)
    assert (twin - exact).abs().max() < 0.02


@pytest.mark.skipif(Path.DOT not in PATHS, reason="no products of bfloat16 pairs here")
def test_values_that_are_all_alike_come_out_as_they_went_in():
    q, keys, _, batch = chunk(21, 30, torch.bfloat16)
    out = attend(q, keys, torch.full_like(keys, 1.5), batch, 0.125, path=Path.DOT)
    torch.testing.assert_close(out, torch.full_like(out, 1.5), rtol=1e-6, atol=0)


def test_the_path_follows_that_of_products(monkeypatch: pytest.MonkeyPatch):
    assert attention_path(torch.float64) is None
    assert attention_path(torch.float32) is PATHS[0]
    assert attention_path(torch.bfloat16) is PATHS[-1]
    if PATHS[0] is not None:
        monkeypatch.setenv(CHOICE, "fma")
        assert attention_path(torch.bfloat16) is Path.FMA


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


@needs_native
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("rows", "before"), [(130, 0), (37, 300), (20, 5000)])
def test_a_row_of_a_chunk_does_not_depend_on_its_batch_mates(rows: int, before: int, way):
    pool, path = way
    q, keys, values, batch = chunk(rows, before, pool)
    together = attend(q, keys, values, batch, 0.125, path=path)
    for row in range(0, rows, 3):
        alone = attend(q[row : row + 1], keys, values, one_row(batch, row, 1), 0.125, path=path)
        assert torch.equal(alone[0], together[row])


@needs_native
@given(
    prefix=st.integers(0, 100),
    path=st.lists(st.integers(0, 62), min_size=1, max_size=9, unique=True),
    arithmetic=st.sampled_from(PATHS),
    seed=st.integers(0, 99),
)
def test_a_key_counts_the_same_in_a_page_and_in_the_tail(prefix: int, path: list[int], arithmetic: Path | None, seed: int):
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
    in_tail = attend(q, keys, values, tree, 0.125, path=arithmetic)
    assert torch.equal(in_tail, attend(q, keys, values, plain, 0.125, path=arithmetic))


@pytest.mark.parametrize(
    ("dtype", "pooled"), [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float64, torch.float64)]
)
def test_what_a_row_may_not_see_cannot_harm_it(dtype: torch.dtype, pooled: torch.dtype):
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
    q, keys, values = q.to(dtype), keys.to(pooled), values.to(pooled)
    clean = attend(q, keys, values, batch, 0.125)
    tail = batch.tail_start + TAIL_ROWS
    for pool in (keys, values):
        pool[tail + 2 :] = torch.nan
        pool[batch.pages[1, 1] * 16 + 9 :][:1] = torch.nan  # position 25, seen by nobody
    assert torch.equal(attend(q, keys, values, batch, 0.125), clean)


@pytest.mark.parametrize("pool", [torch.float32, torch.bfloat16])
def test_a_sibling_of_nan_stays_clean(pool: torch.dtype):
    q, keys, values, batch = chunk(2, 20, pool)
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
