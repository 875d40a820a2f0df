"""The Triton kernels that say where the rows of a pass stand equal their torch twins, on a GPU or in Triton's interpreter."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.kernels import places
from adaserve.kernels.places import Known, Laid
from adaserve.tree import CandidateTree, DraftTree, pack
from tests.devices import DEVICE, needs_triton
from tests.kernels.test_places import LENGTH, PAGE_SIZE, SLOTS, TAIL_START, same, tables
from tests.strategies import candidate_trees, seeds
from tests.test_tree import random_packing

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


def with_idle(rng: random.Random, n: int) -> torch.Tensor:
    """Slots of n requests, the last ones the spare slot's, which pads them."""
    slot = torch.randperm(SLOTS - 1, generator=torch.Generator().manual_seed(rng.randrange(10**9)))[:n]
    return torch.cat([slot, torch.full((n - len(slot),), SLOTS - 1)]).where(torch.arange(n) < rng.randint(0, n), SLOTS - 1)


@given(candidates=candidate_trees(), rng=seeds(), padding=st.integers(0, 200))
def test_rows_of_padded_trees_equal_their_twins(candidates: CandidateTree, rng: random.Random, padding: int) -> None:
    """Where they stand, and where they move to, once they are accepted."""
    from adaserve.kernels import triton_places

    _, known, pages = tables(rng)
    known[-1] = 0
    chosen, root_token = random_packing(rng, candidates)
    tree = pack(candidates, chosen, root_token, len(root_token) + int(chosen.sum()) + padding)
    tree = DraftTree(*(x.to(DEVICE) for x in vars(tree).values()))
    known, pages, slot, spares = (
        x.to(DEVICE) for x in (known, pages, with_idle(rng, len(root_token)), torch.tensor([SLOTS - 1]))
    )
    owned = known, pages, PAGE_SIZE, tree
    rows = (*owned, slot, spares, TAIL_START)
    same(triton_places.tree_rows(*rows), places.tree_rows_reference(*rows))

    live = (tree.depth > 0) & (tree.row < len(slot))
    accepted = live & torch.tensor([rng.random() < 0.5 for _ in range(tree.rows)], dtype=torch.bool, device=DEVICE)
    place = torch.randint(64, (tree.rows,)).to(DEVICE)
    arguments = (*owned, accepted, place, slot, spares, TAIL_START)
    same(triton_places.padded_moves(*arguments), places.padded_moves_reference(*arguments))


def test_many_requests_begin_where_those_before_them_end() -> None:
    """More than a program takes at once."""
    from adaserve.kernels import triton_places

    n, rng = 300, random.Random(0)
    count = torch.tensor([rng.randint(0, 5) for _ in range(n)])
    row = torch.arange(n).repeat_interleave(count + 1)
    nothing = torch.zeros_like(row)
    tree = DraftTree(nothing, nothing, row, nothing, nothing, nothing, nothing, nothing, count)
    tree = DraftTree(*(x.to(DEVICE) for x in vars(tree).values()))
    known, pages = (x.to(DEVICE) for x in (torch.randint(1, 40, (n + 1,)), torch.randint(250, (n + 1, 30))))
    slot, spares = torch.randperm(n).to(DEVICE), torch.tensor([n]).to(DEVICE)
    rows = known, pages, PAGE_SIZE, tree, slot, spares, TAIL_START
    same(triton_places.tree_rows(*rows), places.tree_rows_reference(*rows))


@given(rng=seeds(), n=st.integers(0, 6), width=st.integers(1, 20))
def test_gains_of_padding_equal_their_twin(rng: random.Random, n: int, width: int) -> None:
    from adaserve.kernels import triton_places

    tokens, known, _ = (x.to(DEVICE) for x in tables(rng))
    known[-1] = 0
    slot, spares = with_idle(rng, n).to(DEVICE), torch.tensor([SLOTS - 1], device=DEVICE)
    gained, count = torch.randint(99, (n, width)).to(DEVICE), torch.randint(1, width + 1, (n,)).to(DEVICE)
    others = tokens.clone(), known.clone()
    triton_places.padded_gain(tokens, known, slot, spares, gained, count)
    places.padded_gain_reference(*others, slot, spares, gained, count)
    same((tokens[:-1], known), (others[0][:-1], others[1]))
