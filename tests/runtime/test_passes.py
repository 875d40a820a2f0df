"""A pass in sheets is the pass: the same hidden states, keys and values, bit for bit."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaserve.kernels.native import library
from adaserve.models.random import random_weights, tiny_config
from adaserve.models.weights import assemble
from adaserve.runtime.batch import TAIL_ROWS, ForwardBatch
from adaserve.runtime.passes import PlainPasses, sheets

PAGE, PAGES = 4, 12
CONFIG = tiny_config("qwen3")
WEIGHTS = random_weights(CONFIG, seed=0)


def batch_of(groups: list[tuple[int, list[int]]], seed: int) -> ForwardBatch:
    """A group a slot: known tokens, and the tree's nodes by parent among themselves, -1 for the root; or no nodes: a chunk."""
    draw = torch.Generator().manual_seed(seed)
    slots = len(groups)
    pages = torch.randperm(slots * PAGES, generator=draw).view(slots, PAGES)
    tail_start = slots * PAGES * PAGE
    rows: list[tuple[int, int, int, int]] = []  # position, prefix, mask, dest
    start = [0]
    for slot, (known, parents) in enumerate(groups):

        def paged(position: int, slot: int = slot) -> int:
            return int(pages[slot, position // PAGE]) * PAGE + position % PAGE

        if parents:
            masks: list[int] = []
            rows.append((known - 1, known, 0, paged(known - 1)))
            for node, parent in enumerate(parents):
                masks.append(1 << node | (masks[parent] if parent >= 0 else 0))
                rows.append((known - 1 + masks[-1].bit_count(), known, masks[-1], tail_start + slot * TAIL_ROWS + node))
        else:
            rows += [(position, position + 1, 0, paged(position)) for position in range(known)]
        start.append(len(rows))
    position, prefix, mask, dest = torch.tensor(rows, dtype=torch.int64).view(-1, 4).t().contiguous()
    token = torch.randint(CONFIG.vocab_size, (len(rows),), generator=draw)
    return ForwardBatch(
        token, position, prefix, mask, dest, torch.tensor(start), torch.arange(slots), pages, PAGE, tail_start
    )  # fmt: skip


@st.composite
def groups(draw: st.DrawFn) -> list[tuple[int, list[int]]]:
    found = []
    for _ in range(draw(st.integers(1, 4))):
        nodes = draw(st.integers(0, 9))
        found.append((draw(st.integers(1, PAGE * PAGES)), [draw(st.integers(-1, node - 1)) for node in range(nodes)]))
    return found


@settings(max_examples=40, deadline=None)
@given(groups=groups(), most=st.integers(1, 40), dtype=st.sampled_from([torch.float32, torch.bfloat16]), seed=st.integers(0, 99))
def test_sheets_do_what_the_whole_pass_does(groups: list[tuple[int, list[int]]], most: int, dtype: torch.dtype, seed: int):
    decoder = assemble(CONFIG, WEIGHTS, "test", dtype=dtype)
    batch = batch_of(groups, seed)
    whole, cut = (decoder.new_pool(pages=len(groups) * PAGES, page_size=PAGE, slots=len(groups)) for _ in range(2))
    for pool in (whole, cut):
        draw = torch.Generator().manual_seed(seed)  # what is known already
        pool.keys.copy_(torch.randn(pool.keys.shape, generator=draw))
        pool.values.copy_(torch.randn(pool.values.shape, generator=draw))
    expected = decoder.forward(batch, whole)
    parts = sheets(batch, most)
    assert all(0 < len(sheet.token) <= most for sheet in parts)
    close = 0.0 if library("attention") else 0.1  # torch's products promise no bits
    for mine, right in (
        (torch.cat([decoder.forward(sheet, cut) for sheet in parts]), expected),
        (cut.keys, whole.keys),
        (cut.values, whole.values),
    ):
        torch.testing.assert_close(mine, right, rtol=0, atol=close)


def test_a_large_pass_is_cut_and_small_ones_are_not(monkeypatch):
    monkeypatch.setattr("adaserve.runtime.passes.SHEET", 20)
    decoder = assemble(CONFIG, WEIGHTS, "test", dtype=torch.float32)
    seen = []

    class Counting:
        def forward(self, batch: ForwardBatch, pool) -> torch.Tensor:
            seen.append(len(batch.token))
            return decoder.forward(batch, pool)

    for known in (20, 45):
        batch = batch_of([(known, [])], seed=1)
        pool = decoder.new_pool(pages=PAGES, page_size=PAGE, slots=1)
        hidden = PlainPasses(Counting(), pool).plain(batch, known)
        assert hidden.shape == (known, CONFIG.hidden)
    assert seen == [20, 15, 15, 15]
