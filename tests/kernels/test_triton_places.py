"""The Triton kernel of rows of known tokens equals its torch twin, on a GPU or in Triton's interpreter."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.kernels import places
from tests.devices import DEVICE, needs_triton
from tests.kernels.test_places import LENGTH, PAGE_SIZE, SLOTS, same, tables
from tests.strategies import seeds

pytestmark = needs_triton


@pytest.mark.parametrize("longest", [1, 9, LENGTH])
@given(rng=seeds(), chunks=st.integers(0, 4))
def test_known_rows_equal_their_twin(rng: random.Random, chunks: int, longest: int) -> None:
    from adaserve.kernels import triton_places

    tokens, _, pages = (x.to(DEVICE) for x in tables(rng))
    slots = [rng.randrange(SLOTS) for _ in range(chunks)]
    lengths = [rng.randint(1, longest) for _ in slots]
    starts = [rng.randint(0, LENGTH - length) for length in lengths]
    arguments = tokens, pages, PAGE_SIZE, slots, starts, lengths
    same(triton_places.known_rows(*arguments), places.known_rows_reference(*arguments))
