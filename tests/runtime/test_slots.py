"""Batches of rows: what kernels read by address must lie there number by number, whatever views went in."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.request import SamplingParams
from adaserve.runtime.slots import SlotTable
from adaserve.speculation.beam import Beam
from adaserve.step import Chunk, PageGrant, Placement

KNOWN = 9


def filled(slots: int) -> SlotTable:
    table = SlotTable(slots=slots, length=32, page_size=4)
    for slot in range(slots):
        table.place(Placement(slot, tuple(range(KNOWN)), KNOWN, SamplingParams(), 0, 0, ()))
        table.grant([PageGrant(slot, 0, tuple(range(slot * 10, slot * 10 + 10)))])
    return table


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
def test_beams_of_every_width_name_their_rows_in_place(slots: int, width: int, steps: int) -> None:
    """A beam of width 1 has the same mask for all requests: a view that repeats it is not enough."""
    table = filled(slots)
    slot = torch.arange(slots)
    beam = Beam(width, torch.full((slots,), steps))
    token = torch.arange(width).expand(slots, 1, width)
    for depth in range(1, steps + 1):
        rows = beam.extend(token, torch.full(token.shape, -1.0))
        batch = table.beam_batch(slot, rows.token, rows.mask, rows.tail, depth, tail_start=400)
        for numbers in (batch.token, batch.position, batch.prefix, batch.mask, batch.dest, batch.start, batch.slot):
            assert numbers.is_contiguous()
        assert batch.mask.tolist() == rows.mask.flatten().tolist()
        token = torch.arange(width).expand(slots, width, width)


def test_known_rows_are_causal() -> None:
    batch = filled(2).known_batch([Chunk(0, 3, 2), Chunk(1, 0, 3)], tail_start=400)
    assert batch.position.tolist() == [3, 4, 0, 1, 2]
    assert batch.prefix.tolist() == [4, 5, 1, 2, 3]
    assert batch.start.tolist() == [0, 2, 5] and batch.slot.tolist() == [0, 1]
