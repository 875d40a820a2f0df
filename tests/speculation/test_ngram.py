"""The n-gram drafter against a plain search, and its learning."""

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.speculation.index import NgramIndex
from adaserve.speculation.ngram import HitRate, NgramDrafter
from adaserve.step import Drafted
from adaserve.tree import MAX_NODES, ROOT, Source, pack

texts = st.lists(st.integers(0, 3), max_size=60)


def plain_search(known: list[int], shortest: int, longest: int, length: int) -> list[int]:
    """Look for the longest suffix from the right, then copy, the copy itself included."""
    for size in range(longest, shortest - 1, -1):
        for start in range(len(known) - size - 1, -1, -1):
            if size <= len(known) and known[start : start + size] == known[-size:]:
                copy = known[start + size :]
                while len(copy) < length:
                    copy.append(copy[start + size - len(known)])
                return copy[:length]
    return []


@given(texts, st.integers(1, 3), st.integers(0, 3), st.integers(0, 9))
def test_equals_a_plain_search(known: list[int], shortest: int, more: int, length: int) -> None:
    index = NgramIndex(shortest, shortest + more)
    index.append(known)
    assert index.continuation(length).tokens == plain_search(known, shortest, shortest + more, length)


@given(texts, st.integers(0, 60))
def test_appending_bit_by_bit_changes_nothing(known: list[int], cut: int) -> None:
    whole, parts = NgramIndex(1, 3), NgramIndex(1, 3)
    whole.append(known)
    parts.append(known[:cut])
    parts.continuation(5)
    for token in known[cut:]:
        parts.append([token])
    assert parts.continuation(5) == whole.continuation(5)


def test_prefers_the_longest_suffix_and_then_the_latest_place() -> None:
    index = NgramIndex(1, 3)
    index.append([1, 2, 3, 7, 9, 3, 8, 2, 3, 4, 1, 2, 3])
    assert index.continuation(2).tokens == [7, 9]  # after 1 2 3, not after the later 2 3 or 3
    index = NgramIndex(2, 2)
    index.append([1, 2, 3, 1, 2, 4, 1, 2])
    assert index.continuation(1).tokens == [4]


def test_a_loop_keeps_looping() -> None:
    index = NgramIndex(2, 3)
    index.append([5, 1, 2, 3, 1, 2, 3, 1, 2])
    assert index.continuation(7).tokens == [3, 1, 2, 3, 1, 2, 3]


def test_proposes_chains_as_candidate_trees() -> None:
    drafter = NgramDrafter(shortest=2, longest=3)
    drafter.place(7, [1, 2, 3, 4, 1, 2])
    drafter.place(1, [1, 2, 3])  # nothing repeats
    drafter.place(4, [6, 6, 6, 6])
    drafter.place(9, [6, 6, 6, 6])
    tree = drafter.propose((7, 1, 4, 9), 4, room=(9, 9, 2, 9), drafting=(True, True, True, False))
    assert tree.token.tolist() == [[3, 4, 1, 2], [0, 0, 0, 0], [6, 6, 0, 0], [0, 0, 0, 0]]
    assert (tree.path_prob > 0).tolist() == [[True] * 4, [False] * 4, [True, True, False, False], [False] * 4]
    assert tree.parent.tolist() == [[ROOT, 0, 1, 2]] * 4
    assert tree.depth.tolist() == [[1, 2, 3, 4]] * 4
    assert (tree.source == Source.NGRAM).all()
    assert (tree.path_prob.diff(dim=1) <= 0).all()
    assert tree.path_prob.dtype == torch.float64
    packed = pack(tree, tree.path_prob > 0, torch.tensor([2, 3, 6, 6]))
    assert packed.token.tolist() == [2, 3, 4, 1, 2, 3, 6, 6, 6, 6]


def test_gained_tokens_count_and_released_slots_are_forgotten() -> None:
    drafter = NgramDrafter(shortest=1, longest=2)
    drafter.place(0, [1, 2])
    assert drafter.propose([0], 1, [1], [True]).path_prob.tolist() == [[0.0]]
    drafter.append(0, [3, 1])
    assert drafter.propose([0], 2, [2], [True]).token.tolist() == [[2, 3]]
    drafter.place(0, [1])  # the slot's next owner knows nothing of its last
    assert drafter.propose([0], 1, [1], [True]).path_prob.tolist() == [[0.0]]
    drafter.release(0)
    drafter.release(0)
    with pytest.raises(KeyError):
        drafter.propose([0], 1, [1], [True])


@pytest.mark.parametrize("depth", [0, MAX_NODES])
def test_depths_at_the_edges(depth: int) -> None:
    drafter = NgramDrafter(1, 1)
    drafter.place(0, [1, 1])
    tree = drafter.propose([0], depth, [MAX_NODES], [True])
    assert tree.token.tolist() == [[1] * depth]
    assert drafter.propose([], depth, [], []).token.shape == (0, depth)


def test_refuses_nonsense() -> None:
    for shortest, longest in ((0, 2), (3, 2)):
        with pytest.raises(ValueError, match="sizes"):
            NgramDrafter(shortest, longest)
    with pytest.raises(ValueError, match="depth"):
        NgramDrafter().propose([], MAX_NODES + 1, [], [])


def outcome(*nodes: tuple[int, Source, bool, bool]) -> Drafted:
    """Drafted nodes from (depth, source, reached, accepted)."""
    depth, source, reached, accepted = zip(*nodes, strict=True)
    zeros = (0.0,) * len(nodes)
    return Drafted((0,) * len(nodes), depth, tuple(int(s) for s in source), zeros, zeros, reached, accepted)


def test_learns_conditional_acceptance_per_depth() -> None:
    """With acceptance of 0.9 at depth 1 and 0.3 at depth 2, the estimates get there; f is their product."""
    drafter = NgramDrafter(1, 1)
    drafter.place(0, [1, 1])
    rng = random.Random(0)
    for _ in range(3000):
        first, second = rng.random() < 0.9, rng.random() < 0.3
        drafter.propose([0], 2, [2], [True])
        drafter.learn(outcome((1, Source.NGRAM, True, first), (2, Source.NGRAM, first, first and second)), [0])
    f = drafter.propose([0], 2, [2], [True]).path_prob[0].tolist()
    assert f == pytest.approx([0.9, 0.27], abs=0.05)


def test_does_not_learn_from_other_drafters_or_from_nodes_that_were_not_put_to_the_test() -> None:
    drafter = NgramDrafter(1, 1)
    drafter.place(0, [1, 1])
    before = drafter.propose([0], 2, [2], [True]).path_prob.tolist()
    drafter.learn(outcome((1, Source.MODEL, True, True), (1, Source.BOTH, True, True), (2, Source.NGRAM, False, False)), [0])
    assert drafter.propose([0], 2, [2], [True]).path_prob.tolist() == before


def test_what_follows_a_longer_suffix_is_told_apart() -> None:
    """Always right after three tokens, never after one: each is believed by its own record."""
    drafter = NgramDrafter(1, 3)
    drafter.place(3, [1, 2, 3, 4, 1, 2, 3])
    drafter.place(7, [5, 6, 5])
    for _ in range(100):
        drafter.propose([3, 7], 1, [1, 1], [True, True])
        both = Drafted((0, 1), (1, 1), (1, 1), (0.0, 0.0), (0.0, 0.0), (True, True), (True, False))
        drafter.learn(both, [3, 7])
    f = drafter.propose([7, 3], 1, [1, 1], [True, True]).path_prob
    assert f[0] < 0.1 and f[1] > 0.9


def test_hit_rates_start_at_the_prior_and_follow_a_change() -> None:
    hits = HitRate(prior=0.6, weight=8, horizon=100)
    assert hits.rate(1) == pytest.approx(0.6)
    for _ in range(2000):
        hits.learn(1, True)
    assert 0.95 < hits.rate(1) < 1
    for _ in range(300):
        hits.learn(1, False)
    assert 0 < hits.rate(1) < 0.15
    assert hits.rate(2) == pytest.approx(0.6)


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=50))
def test_path_probabilities_never_rise(trials: list[tuple[int, bool]]) -> None:
    hits = HitRate()
    for depth, accepted in trials:
        hits.learn(depth, accepted)
    probs = hits.path_probs(6)
    assert all(0 < later < f < 1 for f, later in pairwise(probs))
