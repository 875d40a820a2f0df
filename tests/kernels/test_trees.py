import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.kernels.trees import MOST_COLUMNS, edge_prob, pack, picked, picked_reference, walk, walk_reference
from adaserve.tree import MAX_NODES, ROOT, CandidateTree, DraftTree
from adaserve.tree import edge_prob as edge_prob_reference
from adaserve.tree import pack as pack_reference
from tests.devices import DEVICE, needs_native, needs_triton
from tests.oracles.drafts import packed, path_of, random_nodes
from tests.strategies import candidate_trees, random_candidates, seeds
from tests.test_tree import random_packing


def random_walk(seed: int, n: int, padding: int, surplus: int) -> tuple[DraftTree, torch.Tensor, int]:
    """Trees over three tokens, so that walks go on for a while; a draw at every row, and a depth that no node exceeds."""
    rng = random.Random(seed)
    trees = [random_nodes(rng, 12, 5, lambda path: rng.randrange(3)) for _ in range(n)]
    tree = packed(trees, [rng.randrange(3) for _ in range(n)], n + sum(map(len, trees)) + padding)
    drawn = torch.tensor([rng.randrange(3) for _ in range(tree.rows)], dtype=torch.int64)
    max_depth = max([0, *(len(path_of(tree, row)) for row in range(tree.rows - padding))]) + surplus
    return tree, drawn, max_depth


@needs_native
@given(candidate_trees(), seeds())
def test_packing_equals_its_twin(candidates: CandidateTree, rng: random.Random) -> None:
    chosen, root_token = random_packing(rng, candidates)
    found, expected = pack(candidates, chosen, root_token), pack_reference(candidates, chosen, root_token)
    for name, x in vars(found).items():
        assert torch.equal(x, getattr(expected, name)), name
        assert x.dtype == torch.int64 and x.is_contiguous(), name


def test_too_many_nodes_are_refused() -> None:
    columns = MAX_NODES + 1
    ids = torch.zeros(1, columns, dtype=torch.int64)
    wide = CandidateTree(torch.arange(columns)[None], ids - 1, ids + 1, torch.full((1, columns), 0.5).double(), ids)
    with pytest.raises(ValueError, match="at most 63"):
        pack(wide, torch.ones(1, columns, dtype=torch.bool), torch.zeros(1, dtype=torch.int64))


@needs_native
@given(st.integers(0, 10**9), st.integers(0, 5), st.integers(0, 7), st.integers(0, 3))
def test_walking_equals_its_twin(seed: int, n: int, padding: int, surplus: int) -> None:
    tree, drawn, max_depth = random_walk(seed, n, padding, surplus)
    for found, expected in zip(walk(tree, drawn, max_depth), walk_reference(tree, drawn, max_depth), strict=True):
        assert torch.equal(found, expected) and found.dtype == expected.dtype


@needs_native
@given(candidate_trees())
def test_edges_equal_their_twin(candidates: CandidateTree) -> None:
    assert torch.equal(edge_prob(candidates), edge_prob_reference(candidates))


@given(candidate_trees(), seeds())
def test_picked_trees_are_those_of_their_rows(candidates: CandidateTree, rng: random.Random) -> None:
    count, columns = candidates.token.shape
    if count == 0:
        return
    rows = [rng.randrange(-1, count) for _ in range(rng.randint(0, 5))]
    room, kept = [rng.randint(0, 4) for _ in rows], rng.randint(0, columns)
    found = picked(candidates, rows, room, kept)
    assert found.token.shape == (len(rows), kept)
    for tree, row in enumerate(rows):
        possible = candidates.depth[row, :kept] <= room[tree]
        assert torch.equal(found.depth[tree], candidates.depth[max(row, 0), :kept])
        if row < 0:
            assert (found.parent[tree] == ROOT).all() and not found.path_prob[tree].any() and not found.token[tree].any()
            continue
        for name in ("token", "parent", "source"):
            assert torch.equal(getattr(found, name)[tree], getattr(candidates, name)[row, :kept]), name
        assert torch.equal(found.path_prob[tree], torch.where(possible, candidates.path_prob[row, :kept], 0.0))


@needs_triton
@given(candidate_trees(), seeds())
def test_picking_equals_its_twin(candidates: CandidateTree, rng: random.Random) -> None:
    from adaserve.kernels import triton_trees

    tree = CandidateTree(*(x.to(DEVICE) for x in vars(candidates).values()))
    count, columns = tree.token.shape
    rows = [rng.randrange(-1, count) for _ in range(rng.randint(0, 5))] if count else []
    arguments = tree, rows, [rng.randint(0, 4) for _ in rows], rng.randint(0, columns)
    found, expected = triton_trees.picked(*arguments), picked_reference(*arguments)
    for name, x in vars(found).items():
        assert torch.equal(x, getattr(expected, name)) and x.dtype == getattr(expected, name).dtype, name


@needs_triton
@given(candidate_trees(), seeds(), st.integers(0, 9))
def test_packing_into_a_size_equals_its_twin(candidates: CandidateTree, rng: random.Random, padding: int) -> None:
    """On a device, where roots and nodes are followed by rows of padding."""
    from adaserve.kernels import triton_trees

    chosen, root_token = (x.to(DEVICE) for x in random_packing(rng, candidates))
    tree = CandidateTree(*(x.to(DEVICE) for x in vars(candidates).values()))
    if not tree.token.shape[1]:
        return
    size = len(root_token) + int(chosen.sum()) + padding
    found, expected = triton_trees.pack(tree, chosen, root_token, size), pack_reference(tree, chosen, root_token, size)
    for name, x in vars(found).items():
        assert torch.equal(x, getattr(expected, name)) and x.dtype == torch.int64 and x.is_contiguous(), name


@needs_triton
@given(seeds())
def test_packing_the_deepest_and_the_widest_trees_equals_its_twin(rng: random.Random) -> None:
    """As many nodes as a tree may have, in one path or all below the root, beside candidates that are not chosen."""
    from adaserve.kernels import triton_trees

    columns, n = MAX_NODES + rng.randint(0, 20), rng.randint(1, 3)
    ids = torch.arange(columns).repeat(n, 1)
    deep = torch.tensor([[rng.random() < 0.5] for _ in range(n)])
    parent, depth = torch.where(deep, ids - 1, ROOT), torch.where(deep, ids + 1, 1)
    f = torch.full((n, columns), 0.5, dtype=torch.float64)
    tree = CandidateTree(*(x.to(DEVICE) for x in (ids + 7, parent, depth, f, ids % 3)))
    chosen = (ids < MAX_NODES - rng.randint(0, 2)).to(DEVICE)
    root_token, size = torch.arange(n).to(DEVICE), n * (1 + MAX_NODES)
    found, expected = triton_trees.pack(tree, chosen, root_token, size), pack_reference(tree, chosen, root_token, size)
    for name, x in vars(found).items():
        assert torch.equal(x, getattr(expected, name)), name


@needs_triton
@pytest.mark.parametrize(("n", "columns"), [(40, 130), (30, 70), (2, 300)])
def test_large_batches_equal_their_twins(n: int, columns: int) -> None:
    """More cells than are counted at once, blocks of 128 and 256 columns, and more columns than there is a kernel for."""
    from adaserve.kernels import triton_trees

    rng = random.Random(columns)
    candidates = random_candidates(rng, n, columns, tied=False)
    tree = CandidateTree(*(x.to(DEVICE) for x in vars(candidates).values()))
    chosen, root_token = (x.to(DEVICE) for x in random_packing(rng, candidates))
    chosen &= chosen.cumsum(1) <= MAX_NODES  # the first ones, among which are their parents
    size = n + int(chosen.sum()) + 7
    whole = pack if columns > MOST_COLUMNS else triton_trees.pack
    edges = edge_prob if columns > MOST_COLUMNS else triton_trees.edge_prob
    found, expected = whole(tree, chosen, root_token, size), pack_reference(tree, chosen, root_token, size)
    for name, x in vars(found).items():
        assert torch.equal(x, getattr(expected, name)), name
    assert torch.equal(edges(tree), edge_prob_reference(tree))


@needs_triton
def test_the_longest_walk_equals_its_twin() -> None:
    """Along a chain of as many nodes as a tree may have, to its end, behind one that is refused at once."""
    from adaserve.kernels import triton_trees

    trees = [[(i - 1, 5) for i in range(MAX_NODES)], [(i - 1, 7) for i in range(MAX_NODES)]]
    tree = packed(trees, [5, 7], 2 * (MAX_NODES + 1) + 3)
    drawn = torch.full((tree.rows,), 7, dtype=torch.int64)
    there = DraftTree(*(x.to(DEVICE) for x in vars(tree).values()))
    found, expected = triton_trees.walk(there, drawn.to(DEVICE), MAX_NODES), walk_reference(tree, drawn, MAX_NODES)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.cpu(), other)
    assert found[1].tolist() == [1, MAX_NODES + 1]


@needs_triton
@given(st.integers(0, 10**9), st.integers(0, 5), st.integers(0, 7), st.integers(0, 3))
def test_walking_on_a_device_equals_its_twin(seed: int, n: int, padding: int, surplus: int) -> None:
    from adaserve.kernels import triton_trees

    tree, drawn, max_depth = random_walk(seed, n, padding, surplus)
    there = DraftTree(*(x.to(DEVICE) for x in vars(tree).values()))
    found, expected = triton_trees.walk(there, drawn.to(DEVICE), max_depth), walk_reference(tree, drawn, max_depth)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.cpu(), other) and one.dtype == other.dtype


@needs_triton
@given(candidate_trees())
def test_edges_on_a_device_equal_their_twin(candidates: CandidateTree) -> None:
    from adaserve.kernels import triton_trees

    tree = CandidateTree(*(x.to(DEVICE) for x in vars(candidates).values()))
    assert torch.equal(triton_trees.edge_prob(tree), edge_prob_reference(tree))
