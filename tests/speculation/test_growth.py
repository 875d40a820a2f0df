"""Trees that are grown in one native call are those that are grown pass by pass."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.models.decoder import Decoder
from adaserve.models.random import random_weights, tiny_config
from adaserve.models.weights import assemble
from adaserve.request import SamplingParams
from adaserve.runtime.joined import Joined
from adaserve.runtime.passes import PlainPasses
from adaserve.runtime.slots import SlotTable
from adaserve.speculation.growth import GrowthByPasses, NativeGrowth
from adaserve.speculation.ranking import Ranking
from adaserve.step import Chunk, PageGrant, Placement
from tests.devices import needs_native

SLOTS, PAGES, PAGE_SIZE = 4, 6, 8
DTYPES = [torch.float32, torch.bfloat16]


def make(dtype: torch.dtype, device: torch.device | str = "cpu") -> Decoder:
    config = tiny_config("llama")
    return assemble(config, random_weights(config, seed=5), "test", dtype=dtype, device=device)


DECODERS = {dtype: make(dtype) for dtype in DTYPES}


def place(known: list[int], heat: float, device: torch.device | str = "cpu") -> tuple[SlotTable, Ranking]:
    table = SlotTable(slots=SLOTS, length=PAGES * PAGE_SIZE, page_size=PAGE_SIZE, device=device)
    ranking = Ranking(SLOTS, table.device)
    for slot, count in enumerate(known):
        sampling = SamplingParams(temperature=heat if slot % 2 else 0.0)
        placement = Placement(slot, tuple(range(1, count + 1)), count, sampling, slot, 0, ())
        table.place(placement)
        ranking.place(placement)
        table.grant([PageGrant(slot, 0, tuple(range(slot * PAGES, (slot + 1) * PAGES)))])
    return table, ranking


@needs_native
@given(
    dtype=st.sampled_from(DTYPES),
    n=st.integers(1, SLOTS),
    width=st.integers(1, 3),
    depth=st.integers(1, 4),
    vocabulary=st.sampled_from([None, 16]),
    coupled=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_equals_passes(dtype: torch.dtype, n: int, width: int, depth: int, vocabulary: int | None, coupled: bool, seed: int):
    draw = torch.Generator().manual_seed(seed)
    decoder = DECODERS[dtype]
    table, ranking = place(torch.randint(1, 20, (SLOTS,), generator=draw).tolist(), 0.8)
    slot = torch.randperm(SLOTS, generator=draw)[:n]
    room = torch.randint(0, depth + 2, (n,), generator=draw)
    # Of each tree's slot what its draft has yet to read, then prompts of the others.
    starts = {i: int(torch.randint(int(table.known[i]), (1,), generator=draw)) for i in range(SLOTS)}
    owners = [*slot.tolist(), *(i for i in range(SLOTS) if i not in slot.tolist())]
    chunks = [Chunk(i, starts[i], int(table.known[i]) - starts[i]) for i in owners]
    ranked = ranking.of(slot, table, depth, coupled)
    pools = [decoder.new_pool(pages=PAGES * SLOTS, page_size=PAGE_SIZE, slots=SLOTS) for _ in range(2)]
    for pool in pools:
        torch.nn.init.normal_(pool.keys, generator=torch.Generator().manual_seed(1))
        torch.nn.init.normal_(pool.values, generator=torch.Generator().manual_seed(2))

    native = NativeGrowth.of(decoder, pools[0], vocabulary)
    assert native is not None
    found = native(chunks, slot, room, table, ranked, depth, width)
    passes = PlainPasses(decoder, pools[1])
    read = passes(Joined(table, None, chunks, pools[1].tail_start), 60)
    roots = read[torch.tensor([chunk.length for chunk in chunks[:n]]).cumsum(0) - 1]
    expected = GrowthByPasses(decoder, pools[1], passes, vocabulary)(roots, slot, room, table, ranked, depth, width, longest=60)
    assert found is not None
    for name, x in vars(expected).items():
        assert torch.equal(getattr(found, name), x), name
    assert torch.equal(pools[0].keys, pools[1].keys) and torch.equal(pools[0].values, pools[1].values)


def test_wide_numbers_take_passes():
    decoder = make(torch.float64)
    assert NativeGrowth.of(decoder, decoder.new_pool(pages=1, page_size=4, slots=1), None) is None
