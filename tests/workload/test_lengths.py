"""Made-up prompts: of the stated length, the same for a seed, sharing prefixes where the trace's hashes do."""

import math
from collections.abc import Sequence
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.workload import DEMO_MIX, Mix
from adaserve.workload.classes import CHAT, CODING
from adaserve.workload.lengths import BLOCK, LengthRow, fill
from adaserve.workload.made_up import SURPLUS, Part, estimate

hashes = st.none() | st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)
rows = st.lists(st.builds(LengthRow, st.just(0.0), st.integers(1, 3 * BLOCK), st.integers(1, 99), hashes), max_size=8)


def alike(first: Sequence[object], second: Sequence[object]) -> int:
    """How far two sequences agree from their start."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))))


@given(rows=rows, seed=st.integers(0, 99))
def test_parts_add_up_to_the_stated_length(rows: list[LengthRow], seed: int) -> None:
    for row, arrival in zip(rows, fill(rows, DEMO_MIX, seed).arrivals, strict=True):
        assert sum(part.tokens for part in arrival.parts) == arrival.input_length == row.input_length
        assert all(len(part.text) == part.tokens * SURPLUS for part in arrival.parts)
        assert (arrival.max_tokens, arrival.ignore_eos, arrival.at) == (row.output_length, True, row.at)
        assert arrival.prompt


@given(rows=rows, cut=st.integers(0, 8), seed=st.integers(0, 99))
def test_a_part_of_a_trace_is_filled_as_in_the_whole(rows: list[LengthRow], cut: int, seed: int) -> None:
    assert fill(rows[:cut], DEMO_MIX, seed).arrivals == fill(rows, DEMO_MIX, seed).arrivals[:cut]


@given(first=st.lists(st.integers(0, 2), min_size=1, max_size=4), second=st.lists(st.integers(0, 2), min_size=1, max_size=4))
def test_equal_hashes_from_the_start_are_a_shared_prefix_and_nothing_else_is(first: list[int], second: list[int]) -> None:
    a, b = fill([LengthRow(0.0, len(keys) * BLOCK, 1, tuple(keys)) for keys in (first, second)], DEMO_MIX, 0).arrivals
    shared = alike(first, second)
    texts = [[part.text for part in arrival.parts] for arrival in (a, b)]
    assert texts[0][:shared] == texts[1][:shared]
    if shared < min(len(first), len(second)):
        assert alike(texts[0][shared], texts[1][shared]) < 8  # a heading's bracket and digits


def test_prompts_without_hashes_share_nothing() -> None:
    texts = [a.prompt for a in fill([LengthRow(0.0, 300, 1)] * 30, Mix({CHAT: 1.0}), 0).arrivals]
    assert max(alike(one, other) for one in texts for other in texts if one is not other) < 8


def test_classes_come_by_their_shares_with_their_targets() -> None:
    filled = fill([LengthRow(0.0, 10, 1)] * 2000, Mix({CODING: 0.7, CHAT: 0.3}), 1)
    share = sum(a.class_name == "coding" for a in filled.arrivals) / 2000
    assert math.isclose(share, 0.7, abs_tol=0.04)
    assert {(a.class_name, a.slo) for a in filled.arrivals} == {("coding", CODING.slo), ("chat", CHAT.slo)}


@pytest.mark.parametrize("stated", [(5,), (5, 6, 7, 8)])
def test_too_few_hashes_and_too_many(stated: tuple[int, ...]) -> None:
    arrival = fill([LengthRow(0.0, 2 * BLOCK + 10, 1, stated)], DEMO_MIX, 0).arrivals[0]
    assert sum(part.tokens for part in arrival.parts) == 2 * BLOCK + 10


@given(st.sampled_from(["coding", "chat", "summarization"]), st.integers(-99, 10**9), st.integers(1, 9000))
def test_an_estimate_begins_as_the_part_does(name: str, key: int, tokens: int) -> None:
    part = Part(name, key, tokens)
    guess = estimate([part])
    assert guess and part.text.startswith(guess)
