"""A beam's step in Triton equals its torch twin, on a GPU or in Triton's interpreter."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from adaserve.attention.tiling import tiles_reference
from adaserve.kernels.beam_step import Next, Scores, Stand, Trees, beam_step_reference, beam_tiles_reference
from adaserve.runtime.batch import ForwardBatch
from tests.devices import DEVICE, needs_gpu, needs_triton

SLOTS, TAIL_START = 9, 1000
ODD = (torch.nan, torch.inf, -torch.inf)


@pytest.fixture(scope="module")
def kernels():
    from adaserve.kernels import triton_beam

    return triton_beam


def draw_logits(n: int, r: int, vocabulary: int, draw: torch.Generator) -> Tensor:
    """Rows of few values each, so that ties are the rule, some of them alike, some with numbers that are none or infinite."""
    spread = torch.rand(n * r, 1, generator=draw) * 6 + 0.5
    rows = torch.randint(-4, 5, (n * r, vocabulary), generator=draw) * spread  # [n * r, V]
    rows += torch.rand(n * r, 1, generator=draw) * torch.randn(n * r, vocabulary, generator=draw).round()
    for row, odd in enumerate(torch.randint(0, 12, (n * r,), generator=draw).tolist()):
        if odd < len(ODD):
            rows[row, torch.randint(vocabulary, (5,), generator=draw)] = ODD[odd]
        elif odd == 4:
            rows[row] = -torch.inf
        elif odd == 5:
            rows[row] = rows[torch.randint(n * r, (1,), generator=draw)]
    return rows.to(DEVICE)


def draw_scores(n: int, r: int, vocabulary: int, noisy: bool, draw: torch.Generator) -> Scores:
    inverse = (torch.rand(n, generator=draw) * 2 + 0.1).double().to(DEVICE)
    heat = torch.rand(n, generator=draw).double() * torch.randint(0, 2, (n,), generator=draw)
    key = torch.randint(-(2**62), 2**62, (n,), generator=draw).to(DEVICE) if noisy else None
    return Scores(draw_logits(n, r, vocabulary, draw), inverse, heat.to(DEVICE), key)


def clear_cut(path_prob: Tensor) -> bool:
    """Whether no two f differ by little: rounding might exchange them."""
    best = path_prob.sort(1).values
    gap = best[:, 1:] - best[:, :-1]
    return bool(((gap == 0) | (gap > 1e-4 * best[:, 1:])).all())


def assert_same(found: Next, expected: Next) -> None:
    for one, other in zip(
        (*found.rows, found.start, *found.tiles), (*expected.rows, expected.start, *expected.tiles), strict=True
    ):
        assert one.dtype == other.dtype and one.is_contiguous()
        assert torch.equal(one, other)


@needs_triton
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 4),
    width=st.integers(1, 8),
    steps=st.integers(1, 4),
    vocabulary=st.sampled_from([1, 3, 20, 2048, 5003]),
    height=st.integers(1, 6),
    noisy=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_equals_its_twin(kernels, n: int, width: int, steps: int, vocabulary: int, height: int, noisy: bool, seed: int) -> None:
    """Step upon step: the same nodes in the same order, also among equals, and the same rows and tiles."""
    draw = torch.Generator().manual_seed(seed)
    width = min(width, vocabulary)
    slot = torch.randperm(SLOTS, generator=draw)[:n].to(DEVICE)
    known = torch.randint(0, 50, (SLOTS,), generator=draw).to(DEVICE)
    room = torch.randint(0, steps + 1, (n,), generator=draw).to(DEVICE)
    stand = Stand(slot, known, TAIL_START, height)
    found, expected = Trees.empty(n, steps * width, DEVICE), Trees.empty(n, steps * width, DEVICE)
    for depth in range(1, steps + 1):
        scores = draw_scores(n, 1 if depth == 1 else width, vocabulary, noisy, draw)
        following = beam_step_reference(scores, room, expected, depth, width, stand)
        own = slice((depth - 1) * width, depth * width)
        assume(clear_cut(expected.path_prob[:, own]))
        assert_same(kernels.beam_step(scores, room, found, depth, width, stand), following)
        for name in ("token", "parent", "mask", "depth"):
            assert torch.equal(getattr(found, name)[:, own], getattr(expected, name)[:, own]), name
        torch.testing.assert_close(found.path_prob[:, own], expected.path_prob[:, own], rtol=1e-5, atol=0)
        found.path_prob[:, own] = expected.path_prob[:, own]  # or what rounding did to ties would add up


@needs_triton
def test_f_is_exact_where_one_token_is_possible(kernels) -> None:
    """Then edges are 1, and those of two that are alike a half: no rounding is to be seen along four steps."""
    logits = torch.full((1, 3000), -torch.inf, device=DEVICE)
    logits[0, [7, 2500]] = 3.0
    one, slot = torch.ones(1, dtype=torch.float64, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    trees = Trees.empty(1, 8, DEVICE)
    for depth in range(1, 5):
        scores = Scores(logits.expand(1 if depth == 1 else 2, -1).contiguous(), one * 0.7, one, None)
        kernels.beam_step(scores, slot + 4, trees, depth, 2, Stand(slot, slot + 5, 0, 2))
    assert trees.token.tolist() == [[7, 2500] * 4]
    assert trees.parent.tolist() == [[-1, -1, 0, 0, 2, 2, 4, 4]]
    torch.testing.assert_close(trees.path_prob, 0.5 ** trees.depth.double(), rtol=1e-15, atol=0)


@given(n=st.integers(1, 5), width=st.integers(1, 9), height=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_tiles_are_those_of_any_batch(n: int, width: int, height: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    known, slot = torch.randint(1, 99, (SLOTS,), generator=draw), torch.randperm(SLOTS, generator=draw)[:n]
    mask = torch.randint(-(2**63), 2**63 - 1, (n, width), generator=draw)
    prefix, start = known[slot].repeat_interleave(width), torch.arange(0, (n + 1) * width, width)
    batch = ForwardBatch(prefix, prefix, prefix, mask.flatten(), prefix, start, slot, prefix, 1, 0)
    found = beam_tiles_reference(Stand(slot, known, 0, height), mask)
    expected = tiles_reference(batch, height, n * -(-width // height))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@needs_triton
def test_only_what_fits_is_taken(kernels) -> None:
    for vocabulary, width in ((49152, 1), (49152, 8), (151936, 8), (3, 3)):
        assert kernels.able(vocabulary, width)
    for vocabulary, width in ((49152, 0), (49152, 9), (2, 3), (10**6, 8)):
        assert not kernels.able(vocabulary, width)


@needs_gpu
def test_nothing_is_compiled_once_all_variants_are(kernels) -> None:
    """Whatever the requests, the width, the depth and the place in memory: while serving it would hold up everybody."""
    draw = torch.Generator().manual_seed(0)
    kernels.compile_all(torch.zeros(1, 5008, device=DEVICE))
    compiled = kernels._extend_kernel, kernels.triton_draws._top_kernel
    before = [len(kernel.device_caches[0][0]) for kernel in compiled]
    for n, width, height in ((1, 1, 1), (3, 3, 5), (4, 8, 5), (2, 4, 16), (5, 5, 2)):
        known, slots = torch.full((SLOTS,), 20, device=DEVICE), torch.arange(n + 1, device=DEVICE)
        trees = Trees.empty(n, 3 * width, DEVICE)
        for depth in (1, 2, 3):
            for noisy in (False, True):
                scores = draw_scores(n, 1 if depth == 1 else width, 5008, noisy, draw)
                kernels.beam_step(scores, slots[1:] * 0 + 9, trees, depth, width, Stand(slots[1:], known, 1000, height))
    assert [len(kernel.device_caches[0][0]) for kernel in compiled] == before
