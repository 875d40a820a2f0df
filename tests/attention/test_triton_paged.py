"""Attention in Triton equals its torch twin, on a GPU or in Triton's interpreter; and tiles cover every row once."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

from adaserve.attention.paged import attend_reference, prepare
from adaserve.attention.tiling import splits, tile, tile_count, tile_height, tiles_reference
from adaserve.runtime.batch import TAIL_ROWS, ForwardBatch, Tiles
from tests.devices import DEVICE, needs_gpu, needs_triton

SLOTS = 5


@pytest.fixture(scope="module")
def kernels():
    from adaserve.attention import triton_paged

    return triton_paged


def make(groups: list[list[tuple[int, int]]], *, page_size: int, longest: int, seed: int) -> tuple[ForwardBatch, int]:
    """A batch of groups of (prefix, mask) rows over shuffled pages, and how many pool rows it needs."""
    draw = torch.Generator().manual_seed(seed)
    rows = [row for group in groups for row in group]
    per_slot = -(-longest // page_size) + 1
    pages = torch.randperm(SLOTS * per_slot, generator=draw).view(SLOTS, per_slot).to(DEVICE)
    prefix = torch.tensor([row[0] for row in rows], dtype=torch.int64, device=DEVICE)
    mask = torch.tensor([row[1] for row in rows], dtype=torch.int64, device=DEVICE)
    start = torch.tensor([0, *(len(group) for group in groups)], device=DEVICE).cumsum(0)
    slot = torch.randperm(SLOTS, generator=draw)[: len(groups)].to(DEVICE)
    tail_start = SLOTS * per_slot * page_size
    nothing = torch.zeros_like(prefix)
    batch = ForwardBatch(nothing, nothing, prefix, mask, nothing, start, slot, pages, page_size, tail_start)
    return batch, tail_start + SLOTS * TAIL_ROWS


def pool(rows: int, kv_heads: int, head_dim: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(rows, kv_heads, head_dim, generator=draw).to(dtype).to(DEVICE) for _ in range(2))
    return keys, values


rows_of_groups = st.lists(
    st.lists(st.tuples(st.integers(0, 150), st.one_of(st.just(0), st.integers(-(2**63), 2**63 - 1))), max_size=12),
    min_size=1,
    max_size=SLOTS,
)


@needs_triton
@settings(max_examples=25)
@given(
    groups=rows_of_groups,
    kv_heads=st.integers(1, 2),
    shared=st.sampled_from([1, 3, 5, 8]),
    head_dim=st.sampled_from([8, 64, 80, 128]),
    page_size=st.sampled_from([1, 16]),
    parts=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 99),
)
def test_equals_its_twin(kernels, groups, kv_heads: int, shared: int, head_dim: int, page_size: int, parts: int, seed: int):
    batch, pool_rows = make(groups, page_size=page_size, longest=150, seed=seed)
    keys, values = pool(pool_rows, kv_heads, head_dim, torch.float32, seed)
    rows = batch.prefix.shape[0]
    q = torch.randn(rows, kv_heads * shared, head_dim, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    tiles = replace(tile(batch, group=shared, kv_heads=kv_heads, longest=150), splits=parts)
    found = kernels.attend(q, keys, values, batch, tiles, head_dim**-0.5)
    expected = attend_reference(q.double(), keys.double(), values.double(), batch, head_dim**-0.5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("parts", [1, 4])
def test_half_precision(kernels, parts: int):
    half = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16  # the interpreter multiplies no bfloat16
    mask = 0b1011
    batch, pool_rows = make([[(40, mask)] * 3, [(130, 1), (130, 3)]], page_size=16, longest=150, seed=0)
    keys, values = pool(pool_rows, 2, 64, half, 0)
    q = torch.randn(5, 6, 64, generator=torch.Generator().manual_seed(1)).to(half).to(DEVICE)
    tiles = replace(tile(batch, group=3, kv_heads=2, longest=150), splits=parts)
    found = kernels.attend(q, keys, values, batch, tiles, 0.125)
    expected = attend_reference(q.double(), keys.double(), values.double(), batch, 0.125)
    torch.testing.assert_close(found.double(), expected, rtol=3e-2, atol=1e-2)


@needs_triton
@pytest.mark.parametrize("parts", [1, 4])
def test_what_a_row_may_not_see_cannot_harm_it(kernels, parts: int):
    """NaN in tail rows that nobody sees, behind the prefix, and in a sibling's key and value."""
    batch, pool_rows = make([[(20, 1), (20, 2), (0, 0)]], page_size=16, longest=60, seed=0)
    keys, values = pool(pool_rows, 2, 16, torch.float32, 0)
    q = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    tiles = replace(tile(batch, group=2, kv_heads=2, longest=60), splits=parts)
    clean = kernels.attend(q, keys, values, batch, tiles, 0.25)
    slot = int(batch.slot[0])
    tail = batch.tail_start + slot * TAIL_ROWS
    for part in (keys, values):
        part[tail + 1 :] = torch.nan
        part[int(batch.pages[slot, 1]) * 16 + 4 :][:1] = torch.nan  # position 20
    found = kernels.attend(q, keys, values, batch, tiles, 0.25)
    assert torch.equal(found[0], clean[0])
    assert found[1].isnan().all()
    assert (found[2] == 0).all()


@given(sizes=st.lists(st.integers(0, 90), min_size=1, max_size=9), group=st.integers(1, 9), padding=st.integers(0, 5))
def test_tiles_cover_every_row_once(sizes: list[int], group: int, padding: int):
    start = torch.tensor([0, *sizes]).cumsum(0)
    rows, slots = int(start[-1]) + padding, torch.arange(len(sizes)) + 10
    nothing = torch.zeros(rows, dtype=torch.int64)
    batch = ForwardBatch(nothing, nothing, nothing, nothing, nothing, start, slots, torch.zeros(20, 4), 16, 0)
    tiles: Tiles = tile(batch, group=group, kv_heads=2, longest=100)
    assert tiles.slot.shape[0] == tile_count(rows, len(sizes), tile_height(rows, len(sizes), group))
    covered = []
    for slot, first, size in zip(tiles.slot.tolist(), tiles.first.tolist(), tiles.rows.tolist(), strict=True):
        assert 0 <= size <= tiles.height
        covered += [(slot, row) for row in range(first, first + size)]
    owners = [10 + g for g, size in enumerate(sizes) for _ in range(size)]
    assert covered == list(zip(owners, range(len(owners)), strict=True))


@needs_triton
@settings(max_examples=40)
@given(groups=rows_of_groups, height=st.integers(1, 12), spare=st.integers(0, 20), padding=st.integers(0, 3))
def test_tiles_of_the_kernel_equal_those_of_its_twin(groups, height: int, spare: int, padding: int):
    from adaserve.attention import triton_tiling

    batch, _ = make(groups, page_size=16, longest=150, seed=0)
    batch = replace(batch, **{name: pad(getattr(batch, name), (0, padding)) for name in ("prefix", "mask")})
    count = sum(-(-len(group) // height) for group in groups) + spare
    found = torch.stack(triton_tiling.tiles_of(batch, height, count))  # [5, T]
    expected = torch.stack(tiles_reference(batch, height, count))
    assert torch.equal(found[2], expected[2])
    some = expected[2] > 0  # of empty tiles nothing else matters
    assert torch.equal(found[:, some], expected[:, some])
    assert bool((found[3:, ~some] == 0).all()) and bool((found[1] >= 0).all())


def test_splits_fill_the_processors_and_no_more():
    assert splits(1000, 100_000) == 1
    assert splits(8, 100) == 1
    assert splits(8, 1024) == 8
    assert splits(8, 10**6) == 32
    assert splits(64, 4096) == 4
    assert splits(256, 7000) == 1


@needs_gpu
def test_nothing_is_compiled_once_all_variants_are(kernels):
    """Whatever the sizes of a batch: a compilation in the middle of serving would hold up everybody for a second."""
    from adaserve.attention import triton_tiling

    keys, values = pool(make([[(1, 0)]], page_size=16, longest=150, seed=0)[1], 2, 64, torch.bfloat16, 0)
    one, _ = make([[(1, 0)]], page_size=16, longest=150, seed=0)
    prepare(keys, values, one, 5)
    compiled = kernels._attend_kernel, kernels._merge_kernel, triton_tiling._tile_kernel
    before = [len(kernel.device_caches[0][0]) for kernel in compiled]
    for count in (1, 3, 7, 40):
        for parts in (1, 4, 32):
            batch, _ = make([[(100, 5)] * count, [(3, 0)]], page_size=16, longest=150, seed=0)
            q = torch.randn(count + 1, 10, 64, device=DEVICE, dtype=torch.bfloat16)
            kernels.attend(q, keys, values, batch, replace(tile(batch, group=5, kv_heads=2, longest=150), splits=parts), 0.1)
    assert [len(kernel.device_caches[0][0]) for kernel in compiled] == before
