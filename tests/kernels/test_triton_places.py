"""The Triton kernel that lays the rows of a pass equals its torch twin, on a GPU or in Triton's interpreter."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.kernels import places
from adaserve.kernels.places import Known, Laid
from tests.devices import DEVICE, needs_triton
from tests.kernels.test_places import LENGTH, PAGE_SIZE, SLOTS, same, tables
from tests.strategies import seeds

pytestmark = needs_triton


def anything(rng: random.Random, rows: int, groups: int) -> Laid:
    """Rows in groups that hold any numbers."""
    draw = torch.Generator().manual_seed(rng.randrange(10**9))
    token, position, prefix, mask, dest = torch.randint(-9, 10**6, (5, rows), generator=draw).to(DEVICE)
    start = torch.randint(rows + 1, (groups + 1,), generator=draw).sort().values
    start[0], start[-1] = 0, rows
    return Laid(
        (token, position, prefix, mask, dest), start.to(DEVICE), torch.randint(SLOTS, (groups,), generator=draw).to(DEVICE)
    )


@pytest.mark.parametrize("longest", [1, 9, LENGTH])
@given(rng=seeds(), chunks=st.integers(0, 4), owners=st.integers(0, 5), idle=st.integers(0, 200), empty=st.integers(0, 3))
def test_laid_rows_equal_their_twin(rng: random.Random, chunks: int, owners: int, idle: int, empty: int, longest: int) -> None:
    from adaserve.kernels import triton_places

    tokens, _, pages = (x.to(DEVICE) for x in tables(rng))
    slots = [rng.randrange(SLOTS) for _ in range(chunks)]
    lengths = [rng.randint(1, longest) for _ in slots]
    starts = [rng.randint(0, LENGTH - length) for length in lengths]
    known = Known(tokens, pages, PAGE_SIZE, slots, starts, lengths)
    trees = anything(rng, owners + rng.randint(0, 150), owners) if owners else None
    rows, groups = sum(lengths) + (len(trees.rows[0]) if trees else 0), owners + chunks
    found, expected = [], []
    out = anything(rng, rows + idle, groups + empty)
    for lay, result in ((triton_places.lay_rows, found), (places.lay_rows_reference, expected)):
        flat = torch.stack(out.rows)
        token, position, prefix, mask, dest = flat
        own = Laid((token, position, prefix, mask, dest), out.start.clone(), out.slot.clone())
        lay(own, trees, known, 4321)
        result += [flat, own.start, own.slot]
    same(tuple(found), tuple(expected))
    assert found[1][-1] == rows and (found[0][4, rows:] == 4321).all()
