"""Packing of trees: against a plain Python twin, and round trips."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.tree import MAX_NODES, ROOT, CandidateTree, DraftTree, Source, ancestor_mask, edge_prob, merge, pack
from tests.strategies import candidate_trees, random_candidates, seeds


def random_choice(rng: random.Random, candidates: CandidateTree) -> torch.Tensor:
    """Some connected choice of real nodes, [n, N]."""
    keen = rng.random()
    chosen = torch.zeros_like(candidates.token, dtype=torch.bool)
    for i in range(len(candidates.token)):
        for column in range(candidates.token.shape[1]):
            parent = int(candidates.parent[i, column])
            reachable = parent == ROOT or bool(chosen[i, parent])
            chosen[i, column] = reachable and candidates.path_prob[i, column] > 0 and rng.random() < keen
    return chosen


def plain_pack(candidates: CandidateTree, chosen: torch.Tensor, root_token: torch.Tensor) -> list[dict[str, int]]:
    """The same rows as `pack`, one at a time."""
    rows: list[dict[str, int]] = []
    for i in range(len(candidates.token)):
        root = len(rows)
        rows.append(dict(token=int(root_token[i]), parent=root, row=i, depth=0, node=0, mask=0, column=0, source=0))
        place = {ROOT: root}
        for column in range(candidates.token.shape[1]):
            if chosen[i, column]:
                parent = place[int(candidates.parent[i, column])]
                place[column] = len(rows)
                node = len(rows) - root - 1
                rows.append(
                    dict(
                        token=int(candidates.token[i, column]),
                        parent=parent,
                        row=i,
                        depth=rows[parent]["depth"] + 1,
                        node=node,
                        mask=rows[parent]["mask"] | 1 << node,
                        column=column,
                        source=int(candidates.source[i, column]),
                    )
                )
    return rows


def rows_of(tree: DraftTree) -> list[dict[str, int]]:
    names = ("token", "parent", "row", "depth", "node", "mask", "column", "source")
    return [dict(zip(names, row, strict=True)) for row in zip(*(getattr(tree, x).tolist() for x in names), strict=True)]


def random_packing(rng: random.Random, candidates: CandidateTree) -> tuple[torch.Tensor, torch.Tensor]:
    root_token = torch.tensor([rng.randint(0, 9) for _ in range(len(candidates.token))], dtype=torch.int64)
    return random_choice(rng, candidates), root_token


@given(candidate_trees(), seeds())
def test_pack_equals_its_plain_twin(candidates: CandidateTree, rng: random.Random) -> None:
    chosen, root_token = random_packing(rng, candidates)
    tree = pack(candidates, chosen, root_token)
    rows = plain_pack(candidates, chosen, root_token)
    assert rows_of(tree) == rows
    assert tree.rows == len(rows)
    assert tree.count.tolist() == chosen.sum(1).tolist()
    assert tree.root.tolist() == [at for at, row in enumerate(rows) if row["depth"] == 0]
    assert all(x.dtype == torch.int64 for x in vars(tree).values())


@given(candidate_trees(), seeds())
def test_pack_loses_nothing(candidates: CandidateTree, rng: random.Random) -> None:
    chosen, root_token = random_packing(rng, candidates)
    tree = pack(candidates, chosen, root_token)
    assert torch.equal(tree.token[tree.root], root_token)
    node = tree.depth > 0
    request, column = tree.row[node], tree.column[node]
    back = torch.zeros_like(chosen)
    back[request, column] = True
    assert torch.equal(back, chosen)
    assert torch.equal(candidates.token[request, column], tree.token[node])
    assert torch.equal(candidates.depth[request, column], tree.depth[node])
    # A node's parent is the row of its parent's column.
    parent = tree.parent[node]
    above = torch.where(tree.depth[parent] > 0, tree.column[parent], ROOT)
    assert torch.equal(candidates.parent[request, column], above)
    assert torch.equal(tree.row[parent], request)


@given(candidate_trees(), seeds(), st.integers(0, 70))
def test_padding_of_a_static_size_is_harmless(candidates: CandidateTree, rng: random.Random, spare: int) -> None:
    n = len(candidates.token)
    chosen, root_token = random_packing(rng, candidates)
    exact = pack(candidates, chosen, root_token)
    padded = pack(candidates, chosen, root_token, size=exact.rows + spare)
    assert padded.rows == exact.rows + spare
    assert rows_of(padded)[: exact.rows] == rows_of(exact)
    assert torch.equal(padded.count, exact.count)
    assert torch.equal(padded.root, exact.root)
    for at, row in enumerate(rows_of(padded)[exact.rows :], start=exact.rows):
        assert row == dict(token=0, parent=at, row=n, depth=1, node=0, mask=0, column=0, source=0)
    # Verification's walk from the roots, with draws that match wherever they can, reaches all real rows and no padding.
    reached = padded.depth == 0
    for _ in range(candidates.token.shape[1]):
        reached = reached | reached[padded.parent]
    assert reached.tolist() == [True] * exact.rows + [False] * spare


def test_a_mask_holds_the_largest_tree_and_no_larger() -> None:
    chain = torch.arange(MAX_NODES + 1)[None]
    candidates = CandidateTree(chain, chain - 1, chain + 1, 0.5 ** (chain + 1).double(), torch.zeros_like(chain))
    chosen = chain < MAX_NODES
    tree = pack(candidates, chosen, torch.tensor([5]))
    assert tree.mask.tolist() == [(1 << depth) - 1 for depth in range(MAX_NODES + 1)]
    with pytest.raises(ValueError, match="at most 63 nodes"):
        pack(candidates, torch.ones_like(chosen), torch.tensor([5]))


def test_a_size_must_hold_the_roots() -> None:
    empty = CandidateTree.empty(3)
    nothing = torch.zeros(3, 0, dtype=torch.bool)
    assert pack(empty, nothing, torch.tensor([7, 8, 9]), size=3).token.tolist() == [7, 8, 9]
    with pytest.raises(ValueError, match="2 rows cannot hold 3 roots"):
        pack(empty, nothing, torch.tensor([7, 8, 9]), size=2)


@given(seeds(), st.integers(1, MAX_NODES))
def test_ancestor_masks_follow_paths_of_any_depth(rng: random.Random, rows: int) -> None:
    parent = [0] + [max(0, at - rng.choice((1, 1, 1, 2, 5))) for at in range(1, rows)]
    bit = [0] + [1 << (at - 1) for at in range(1, rows)]
    expected, depth = [0], [0]
    for at in range(1, rows):
        expected.append(expected[parent[at]] | bit[at])
        depth.append(depth[parent[at]] + 1)
    for bound in (max(depth), rows):
        assert ancestor_mask(torch.tensor(bit), torch.tensor(parent), bound).tolist() == expected


@given(candidate_trees())
def test_edge_probabilities_multiply_to_path_probabilities(candidates: CandidateTree) -> None:
    edge = edge_prob(candidates)
    assert ((edge >= 0) & (edge <= 1)).all()
    assert torch.equal(edge > 0, candidates.path_prob > 0)
    for i in range(len(candidates.token)):
        f = [1.0] * (candidates.token.shape[1] + 1)  # the root's stands last, where index ROOT finds it
        for column in range(candidates.token.shape[1]):
            f[column] = f[int(candidates.parent[i, column])] * float(edge[i, column])
        assert f[:-1] == pytest.approx(candidates.path_prob[i].tolist(), rel=1e-12)


def test_the_trees_drawn_here_are_candidate_trees() -> None:
    """The generator keeps the promises of CandidateTree, and reaches deep, wide and padded trees."""
    rng = random.Random(0)
    deepest = widest = padded = 0
    for _ in range(200):
        c = random_candidates(rng, 3, 12, tied=rng.random() < 0.5)
        for i in range(3):
            real = c.path_prob[i] > 0
            padded += bool((real[:-1] < real[1:]).any())
            for v in real.nonzero().flatten().tolist():
                parent = int(c.parent[i, v])
                assert parent < v
                assert int(c.depth[i, v]) == (1 if parent == ROOT else int(c.depth[i, parent]) + 1)
                assert float(c.path_prob[i, v]) <= (1.0 if parent == ROOT else float(c.path_prob[i, parent]))
                deepest = max(deepest, int(c.depth[i, v]))
            nodes = [(int(c.parent[i, v]), int(c.token[i, v])) for v in real.nonzero().flatten().tolist()]
            assert len(set(nodes)) == len(nodes)
            widest = max(widest, *(sum(p == q for q, _ in nodes) for p, _ in nodes), 0)
            assert c.depth[i][real].diff().ge(0).all()
    assert deepest >= 8
    assert widest >= 8
    assert padded > 100


def with_tokens(rng: random.Random, candidates: CandidateTree, source: Source) -> CandidateTree:
    """The same trees with other tokens, which siblings still differ in, so that two of them share some paths and not others."""
    token = candidates.token.clone()
    for i in range(len(token)):
        renamed: dict[int, list[int]] = {}
        for column in range(token.shape[1]):
            parent = int(candidates.parent[i, column])
            if candidates.path_prob[i, column] > 0:
                names = renamed.setdefault(parent, rng.sample(range(30), 30) if rng.random() < 0.3 else list(range(30)))
                token[i, column] = names[int(token[i, column])]
    return replace(candidates, token=token, source=torch.full_like(token, int(source)))


def paths(candidates: CandidateTree, request: int) -> dict[tuple[int, ...], int]:
    """Column of every real node's path of tokens."""
    path: list[tuple[int, ...]] = []
    for token, parent in zip(candidates.token[request].tolist(), candidates.parent[request].tolist(), strict=True):
        path.append((*path[parent], token) if parent != ROOT else (token,))
    real = {p: c for c, p in enumerate(path) if candidates.path_prob[request, c] > 0}
    assert len(real) == int((candidates.path_prob[request] > 0).sum()), "two nodes of one path: siblings of one token"
    return real


@given(seeds(), st.integers(0, 4), st.integers(0, 14), st.integers(0, 14), st.booleans())
def test_merged_trees_hold_all_paths_once(rng: random.Random, n: int, one: int, other: int, tied: bool) -> None:
    """Valid trees, no two siblings of one token, every path of either, each with its source, and f that never rises."""
    first = with_tokens(rng, random_candidates(rng, n, one, tied), Source.MODEL)
    second = with_tokens(rng, random_candidates(rng, n, other, tied), Source.NGRAM)
    deepest = max((int(c.depth.max()) for c in (first, second) if c.depth.numel()), default=1)
    merged = merge(first, second, deepest)
    assert merged.token.shape == (n, one + other)
    for i in range(n):
        of_first, of_second, of_both = paths(first, i), paths(second, i), paths(merged, i)
        assert of_both.keys() == of_first.keys() | of_second.keys()
        for path, column in of_both.items():
            parent, f = int(merged.parent[i, column]), float(merged.path_prob[i, column])
            assert parent == (ROOT if len(path) == 1 else of_both[path[:-1]]) and parent < column
            assert int(merged.depth[i, column]) == len(path)
            assert f <= (1.0 if parent == ROOT else float(merged.path_prob[i, parent]))
            if path in of_first:
                assert column == of_first[path], "what the model proposed keeps its column"
                assert f >= float(first.path_prob[i, column]) * (1 - 1e-12), "agreement never takes trust away"
            else:
                assert column == one + of_second[path]
            sources = {(True, False): Source.MODEL, (False, True): Source.NGRAM, (True, True): Source.BOTH}
            assert int(merged.source[i, column]) == sources[path in of_first, path in of_second]


@given(seeds(), st.integers(0, 3), st.integers(0, 12), st.booleans())
def test_merging_with_nothing_or_with_itself(rng: random.Random, n: int, columns: int, tied: bool) -> None:
    candidates = with_tokens(rng, random_candidates(rng, n, columns, tied), Source.MODEL)
    deepest = int(candidates.depth.max()) if candidates.depth.numel() else 1
    alone = merge(candidates, CandidateTree.empty(n), deepest)
    assert all(torch.equal(getattr(alone, x), getattr(candidates, x)) for x in vars(candidates))
    twice = merge(candidates, candidates, deepest)
    assert not (twice.path_prob[:, columns:] > 0).any()
    assert torch.equal(twice.path_prob[:, :columns] > 0, candidates.path_prob > 0)
    swapped = merge(CandidateTree.empty(n), candidates, deepest)
    assert torch.equal(swapped.parent, candidates.parent) and torch.equal(swapped.token, candidates.token)
    torch.testing.assert_close(swapped.path_prob, candidates.path_prob, rtol=1e-12, atol=0)


@given(seeds(), st.integers(1, 12))
def test_the_likeliest_nodes_of_merged_trees_are_connected(rng: random.Random, columns: int) -> None:
    """What selection rests on: every prefix of the stable order by f is a connected tree, even where edges are 1."""
    parts = [with_tokens(rng, random_candidates(rng, 3, columns, tied=True), s) for s in (Source.MODEL, Source.NGRAM)]
    merged = merge(*parts, max(int(c.depth.max()) for c in parts))
    for i in range(3):
        order = merged.path_prob[i].sort(descending=True, stable=True).indices.tolist()
        seen = {ROOT}
        for column in order:
            if merged.path_prob[i, column] > 0:
                assert int(merged.parent[i, column]) in seen
                seen.add(column)
