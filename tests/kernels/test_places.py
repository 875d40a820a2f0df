import random
from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.kernels import places
from adaserve.tree import CandidateTree, pack
from tests.devices import needs_native
from tests.strategies import candidate_trees, seeds
from tests.test_tree import random_packing

PAGE_SIZE, PAGES, SLOTS = 4, 30, 9
LENGTH = PAGE_SIZE * PAGES
TAIL_START = 1000


def tables(rng: random.Random) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, known and pages of all slots, filled with anything."""
    draw = torch.Generator().manual_seed(rng.randrange(10**9))
    tokens = torch.randint(10**6, (SLOTS, LENGTH), generator=draw)
    return tokens, torch.randint(1, LENGTH - 64, (SLOTS,), generator=draw), torch.randint(250, (SLOTS, PAGES), generator=draw)


def same(found: tuple[object, ...], expected: tuple[object, ...]) -> None:
    """Tensors, or tuples of them, are equal."""
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, tuple) and isinstance(other, tuple):
            same(one, other)
        else:
            assert isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
            assert torch.equal(one, other) and one.dtype == other.dtype


@needs_native
@given(seeds(), st.integers(0, 4))
def test_known_rows_equal_their_twin(rng: random.Random, chunks: int):
    tokens, _, pages = tables(rng)
    slots = [rng.randrange(SLOTS) for _ in range(chunks)]
    lengths = [rng.randint(1, 9) for _ in slots]
    starts = [rng.randint(0, LENGTH - length) for length in lengths]
    known = places.Known(tokens, pages, PAGE_SIZE, slots, starts, lengths)
    same(tuple(vars(places.known_rows(known)).values()), tuple(vars(places.known_rows_reference(known)).values()))


@needs_native
@given(seeds(), st.integers(0, 5), st.integers(1, 5), st.integers(1, 5))
def test_beam_rows_equal_their_twin(rng: random.Random, n: int, width: int, depth: int):
    _, known, _ = tables(rng)
    slot = torch.randperm(SLOTS)[:n]
    token, mask = torch.randint(99, (2, n, width)).unbind()
    tail = torch.arange(depth * width, (depth + 1) * width)
    arguments = known, slot, token, mask, tail, depth, TAIL_START
    same(places.beam_rows(*arguments), places.beam_rows_reference(*arguments))


@needs_native
@given(candidate_trees(), seeds())
def test_rows_of_trees_equal_their_twins(candidates: CandidateTree, rng: random.Random):
    """Where they stand, and where they move to, once they are accepted."""
    _, known, pages = tables(rng)
    tree = pack(candidates, *random_packing(rng, candidates))
    owned = known, pages, PAGE_SIZE, tree
    slot, spares = torch.randperm(SLOTS)[: len(tree.count)], torch.zeros(0, dtype=torch.int64)
    rows = (*owned, slot, spares, TAIL_START)
    same(places.tree_rows(*rows), places.tree_rows_reference(*rows))

    accepted = (tree.depth > 0) & torch.tensor([rng.random() < 0.5 for _ in range(tree.rows)], dtype=torch.bool)
    place = torch.randint(64, (tree.rows,))
    arguments = (*owned, accepted, place, slot, TAIL_START)
    same(places.moved_rows(*arguments), places.moved_rows_reference(*arguments))


def test_padding_takes_the_twin():
    """Rows of padding belong to a request that does not exist."""
    candidates = CandidateTree.empty(1)
    tree = pack(candidates, candidates.token.bool(), torch.tensor([5]), 1)
    tree = replace(tree, row=torch.tensor([1]), depth=torch.tensor([1]))
    known, pages = torch.tensor([3, 0]), torch.zeros(2, 4, dtype=torch.int64)
    rows, _, owners = places.tree_rows(known, pages, 4, tree, torch.tensor([0]), torch.tensor([1]), 16)
    assert owners.tolist() == [0, 1]
    assert rows[4].tolist() == [16 + 64]  # the spare slot's tail


@needs_native
@given(seeds(), st.integers(0, 5), st.integers(1, 5))
def test_gains_equal_their_twin(rng: random.Random, n: int, width: int):
    tokens, known, _ = tables(rng)
    slot = torch.randperm(SLOTS)[:n]
    assert torch.equal(places.last_tokens(tokens, known, slot), places.last_tokens_reference(tokens, known, slot))
    gained, count = torch.randint(99, (n, width)), torch.randint(1, width + 1, (n,))
    others = tokens.clone(), known.clone()
    places.gain_tokens(tokens, known, slot, gained, count)
    places.gain_tokens_reference(*others, slot, gained, count)
    same((tokens, known), others)
