"""Trees whose steps are one call each are those that are grown pass by pass; and how few operations such a step has."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from adaserve.attention.tiling import tile
from adaserve.cache.pool import KVPool
from adaserve.models.decoder import Decoder
from adaserve.runtime.batch import ForwardBatch
from adaserve.runtime.passes import PlainPasses
from adaserve.speculation.fused_growth import FusedGrowth
from adaserve.speculation.growth import GrowthByPasses
from tests.devices import DEVICE, needs_triton
from tests.speculation.test_growth import DECODERS, PAGE_SIZE, PAGES, SLOTS, make, place

DECODER = DECODERS[torch.float32]


class Tiled(PlainPasses):
    """Passes that look at the tiles which come with a batch."""

    def __init__(self, decoder: Decoder, pool: KVPool) -> None:
        super().__init__(decoder, pool)
        self.seen = 0

    def plain(self, batch: ForwardBatch, longest: int) -> torch.Tensor:
        if batch.tiles is not None:
            self.seen += 1
            heads, kv_heads = DECODER.config.heads, DECODER.config.kv_heads
            usual = tile(batch, group=heads // kv_heads, kv_heads=kv_heads, longest=longest)
            assert (batch.tiles.height, batch.tiles.splits) == (usual.height, usual.splits)
            some = usual.rows > 0
            mine, others = ((x.slot, x.first, x.rows, x.reach, x.nodes) for x in (batch.tiles, usual))
            assert all(torch.equal(one, other[some]) for one, other in zip(mine, others, strict=True))
        return super().plain(batch, longest)


@needs_triton
@given(
    n=st.integers(1, SLOTS),
    width=st.sampled_from([1, 2, 3, 8, 9]),
    depth=st.integers(1, 3),
    vocabulary=st.sampled_from([None, 16]),
    coupled=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_equals_passes(n: int, width: int, depth: int, vocabulary: int | None, coupled: bool, seed: int) -> None:
    """9 is too wide for it."""
    draw = torch.Generator().manual_seed(seed)
    table, ranking = place(torch.randint(1, 20, (SLOTS,), generator=draw).tolist(), 0.8)
    slot = torch.randperm(SLOTS, generator=draw)[:n]
    room = torch.randint(0, depth + 2, (n,), generator=draw)
    hidden = torch.randn(n, DECODER.config.hidden, generator=draw)
    pools = [DECODER.new_pool(pages=PAGES * SLOTS, page_size=PAGE_SIZE, slots=SLOTS) for _ in range(2)]
    for pool in pools:
        torch.nn.init.normal_(pool.keys, generator=torch.Generator().manual_seed(1))
        torch.nn.init.normal_(pool.values, generator=torch.Generator().manual_seed(2))
    passes = Tiled(DECODER, pools[0])
    given_ = slot, room, table, ranking.of(slot, table, depth, coupled), depth, width
    found = FusedGrowth(GrowthByPasses(DECODER, pools[0], passes, vocabulary))(hidden, *given_, longest=60)
    expected = GrowthByPasses(DECODER, pools[1], PlainPasses(DECODER, pools[1]), vocabulary)(hidden, *given_, longest=60)
    assert passes.seen == (depth - 1 if width <= 8 else 0)
    for name in ("token", "parent", "depth", "source"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.path_prob, expected.path_prob, rtol=1e-4, atol=0)
    torch.testing.assert_close(pools[0].keys, pools[1].keys)


@needs_triton
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("width", [1, 3])
def test_kernels_grow_the_same(monkeypatch: Any, width: int, coupled: bool) -> None:
    monkeypatch.setattr("adaserve.kernels.beam_step.on_gpu", lambda x: True)
    decoder = make(torch.float32, DEVICE)
    table, ranking = place([5, 1, 19, 8], 0.8, DEVICE)
    slot, room = torch.tensor([2, 0, 3], device=DEVICE), torch.tensor([3, 1, 2], device=DEVICE)
    hidden = torch.randn(3, decoder.config.hidden, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    trees = []
    for fused in (True, False):
        pool = decoder.new_pool(pages=PAGES * SLOTS, page_size=PAGE_SIZE, slots=SLOTS)
        for numbers in (pool.keys, pool.values):
            numbers.fill_(0.1)
        plain = GrowthByPasses(decoder, pool, PlainPasses(decoder, pool), None)
        grow = FusedGrowth(plain) if fused else plain
        trees.append(grow(hidden, slot, room, table, ranking.of(slot, table, 3, coupled), 3, width, longest=60))
    for name, found in vars(trees[0]).items():
        torch.testing.assert_close(found, getattr(trees[1], name), rtol=1e-4, atol=0)


class Operations(TorchDispatchMode):
    """What torch does on the device, by name: all but views, and memory that is only had."""

    NOTHING = ("empty", "empty_like", "view", "slice", "select", "unbind", "t", "transpose", "expand", "detach", "as_strided")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        if name not in self.NOTHING:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


class Launches:
    """In place of a kernel: notes its launches."""

    def __init__(self, name: str, names: list[str]) -> None:
        self._launch = lambda *arguments, **options: names.append(name)

    def __getitem__(self, grid: Any) -> Any:
        return self._launch


class NoPasses(PlainPasses):
    """Passes that give nothing."""

    def plain(self, batch: ForwardBatch, longest: int) -> torch.Tensor:
        return torch.empty(len(batch.token), DECODER.config.hidden, device=batch.token.device)


@needs_triton
def test_a_step_is_few_launches(monkeypatch: Any) -> None:
    """Beside the pass and the head two, coupled or not; they were fifty operations, some of them several kernels."""
    from adaserve.kernels import triton_beam, triton_draws

    seen = Operations()
    monkeypatch.setattr("adaserve.kernels.beam_step.on_gpu", lambda x: True)
    monkeypatch.setattr(triton_beam, "_extend_kernel", Launches("extend", seen.names))
    monkeypatch.setattr(triton_draws, "_top_kernel", Launches("top", seen.names))
    monkeypatch.setattr(Decoder, "logits", lambda self, hidden, vocabulary: torch.empty(len(hidden), 100))
    table, ranking = place([5] * SLOTS, 0.8)
    slot, pool = torch.arange(SLOTS), DECODER.new_pool(pages=1, page_size=PAGE_SIZE, slots=SLOTS)
    grow = FusedGrowth(GrowthByPasses(DECODER, pool, NoPasses(DECODER, pool), None))
    for coupled in (False, True):
        ranked = ranking.of(slot, table, 4, coupled)
        seen.names.clear()
        with seen:
            grow(torch.empty(SLOTS, DECODER.config.hidden), slot, slot, table, ranked, 4, 3, longest=60)
        assert seen.names == ["top", "extend"] * 4 + ["full_like"]
