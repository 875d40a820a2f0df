"""The beam against an exhaustive twin, and Theorem 4.1."""

import math
import random
from dataclasses import dataclass
from heapq import heappop, heappush

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.speculation.beam import Beam, BeamRows
from adaserve.tree import MAX_NODES, ROOT, CandidateTree, Source
from tests.oracles.algorithm1 import algorithm1, total
from tests.strategies import plain

Path = tuple[int, ...]


@dataclass(frozen=True)
class ToyModel:
    """Random conditional probabilities for every path of tokens; a fixed function of the seed."""

    seed: int
    vocabulary: int
    sharpness: float = 1.0

    def prob(self, request: int, path: Path) -> list[float]:
        """P(next token | path)."""
        rng = random.Random(f"{self.seed} {request} {path}")
        weight = [rng.random() ** (4 * self.sharpness) + 1e-6 for _ in range(self.vocabulary)]
        return [x / sum(weight) for x in weight]

    def top(self, request: int, path: Path, k: int) -> list[tuple[int, float]]:
        """The k likeliest next tokens and their log-probabilities."""
        prob = self.prob(request, path)
        best = sorted(range(self.vocabulary), key=lambda token: -prob[token])[:k]
        return [(token, math.log(prob[token])) for token in best]


def paths_of(tree: CandidateTree, request: int) -> list[Path]:
    """The path of tokens to every column."""
    paths: list[Path] = []
    for token, parent in zip(tree.token[request].tolist(), tree.parent[request].tolist(), strict=True):
        paths.append(((*paths[parent], token)) if parent != ROOT else (token,))
    return paths


def grow(model: ToyModel, width: int, depth: int, room: list[int], drafting: list[bool]) -> tuple[CandidateTree, list[BeamRows]]:
    """Run the beam as an executor does, with the toy in place of the draft model."""
    n = len(room)
    beam = Beam(width, torch.tensor(room, dtype=torch.int64) * torch.tensor(drafting, dtype=torch.bool))
    paths: list[list[Path]] = [[()] for _ in range(n)]
    steps = []
    for step in range(depth):
        best = [[model.top(i, path, width) for path in paths[i]] for i in range(n)]
        shape = (n, width if step else 1, min(width, model.vocabulary))
        token = torch.tensor([[[t for t, _ in row] for row in x] for x in best], dtype=torch.int64).view(shape)
        log_prob = torch.tensor([[[p for _, p in row] for row in x] for x in best], dtype=torch.float64).view(shape)
        steps.append(beam.extend(token, log_prob))
        tree = beam.tree()
        paths = [paths_of(tree, i)[-width:] for i in range(n)]
    return beam.tree(), steps


def exhaustive(model: ToyModel, request: int, width: int, depth: int) -> list[list[tuple[Path, float]]]:
    """Per step the `width` best of all extensions over the whole vocabulary, best first."""
    steps: list[list[tuple[Path, float]]] = []
    kept: list[tuple[Path, float]] = [((), 1.0)]
    for _ in range(depth):
        all_extensions = [((*path, token), f * edge) for path, f in kept for token, edge in enumerate(model.prob(request, path))]
        kept = sorted(all_extensions, key=lambda x: -x[1])[:width]
        steps.append(kept)
    return steps


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.data())
def test_equals_the_exhaustive_beam(seed: int, width: int, depth: int, vocabulary: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 3))
    room = data.draw(st.lists(st.integers(0, depth + 1), min_size=n, max_size=n))
    drafting = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    model = ToyModel(seed, vocabulary)
    tree, _ = grow(model, width, depth, room, drafting)
    assert tree.token.shape == (n, depth * width)
    for i in range(n):
        paths, f = paths_of(tree, i), tree.path_prob[i].tolist()
        for step, expected in enumerate(exhaustive(model, i, width, depth)):
            columns = range(step * width, (step + 1) * width)
            real = [(paths[c], f[c]) for c in columns if f[c] > 0]
            if not drafting[i] or step + 1 > room[i]:
                assert real == []
                continue
            assert [path for path, _ in real] == [path for path, _ in expected]
            assert [p for _, p in real] == pytest.approx([p for _, p in expected], rel=1e-12)
            assert all(f[c] == 0 for c in columns[len(expected) :])  # padding comes last in a step


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 5), st.integers(1, 8))
def test_makes_lawful_trees(seed: int, width: int, depth: int, vocabulary: int) -> None:
    """Depth-major, f never rises, siblings differ, and every column is its own tail row."""
    tree, steps = grow(ToyModel(seed, vocabulary, sharpness=3.0), width, depth, [depth, depth - 1, 0], [True] * 3)
    assert tree.depth.tolist() == [[column // width + 1 for column in range(depth * width)]] * 3
    assert (tree.source == Source.MODEL).all()
    assert ((tree.token >= 0) & (tree.token < vocabulary)).all()  # padding too, for the embedding look-up
    tail = torch.cat([step.tail for step in steps])
    assert tail.tolist() == list(range(depth * width))
    mask = torch.cat([step.mask for step in steps], 1).tolist()
    for i, nodes in enumerate(plain(tree)):
        seen: set[tuple[int, int]] = set()
        for column, (f, parent) in enumerate(nodes):
            above, inherited = (1.0, 0) if parent == ROOT else (nodes[parent][0], mask[i][parent])
            assert parent < column
            assert int(tree.depth[i, column]) == (1 if parent == ROOT else int(tree.depth[i, parent]) + 1)
            assert f <= above
            assert mask[i][column] == inherited | 1 << column
            if f > 0:
                edge = (parent, int(tree.token[i, column]))
                assert edge not in seen
                seen.add(edge)
    for step, rows in enumerate(steps):
        kept = slice(step * width, (step + 1) * width)
        assert rows.depth == step + 1
        assert torch.equal(rows.token, tree.token[:, kept])
        assert torch.equal(rows.parent, tree.parent[:, kept])
        assert torch.equal(rows.path_prob, tree.path_prob[:, kept])


def likeliest_nodes(model: ToyModel, request: int, count: int) -> set[Path]:
    """The `count` nodes of highest f in the infinite tree: the optimal tree of that size."""
    heap: list[tuple[float, Path]] = [(-1.0, ())]
    found: list[Path] = []
    while len(found) <= count:
        f, path = heappop(heap)
        found.append(path)
        for token, edge in enumerate(model.prob(request, path)):
            heappush(heap, (f * edge, (*path, token)))
    return set(found[1:])  # without the root


@given(st.integers(0, 2**32), st.integers(1, 7), st.integers(2, 6), st.sampled_from((0.3, 1.0, 3.0)))
def test_theorem_4_1(seed: int, budget: int, vocabulary: int, sharpness: float) -> None:
    """With w = B and d = B the candidates contain the optimal tree of every size up to B draft nodes."""
    model = ToyModel(seed, vocabulary, sharpness)
    tree, _ = grow(model, budget, budget, [budget], [True])
    assert likeliest_nodes(model, 0, budget) <= set(paths_of(tree, 0))


def test_theorem_4_1_needs_the_width() -> None:
    """The negative control: a beam half as wide as the budget loses nodes of the optimal tree."""
    lost = 0
    for seed in range(40):
        model = ToyModel(seed, 5, 0.3)
        tree, _ = grow(model, 3, 6, [6], [True])
        lost += not likeliest_nodes(model, 0, 6) <= set(paths_of(tree, 0))
    assert lost > 20


@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 5), st.data())
def test_the_optimum_needs_no_more_than_the_beam(seed: int, n: int, nodes: int, data: st.DataObject) -> None:
    """Theorem 4.1 for a batch: Algorithm 1 finds the same optimum on the beam's candidates as on the complete trees."""
    model = ToyModel(seed, 2)
    need = data.draw(st.lists(st.floats(0.0, 2.5), min_size=n, max_size=n))
    tree, _ = grow(model, nodes, nodes, [nodes] * n, [True] * n)
    complete = [[x for step in exhaustive(model, i, 2**nodes, nodes) for x in step] for i in range(n)]
    index = [{path: at for at, (path, _) in enumerate(nodes_of)} for nodes_of in complete]
    all_nodes = [[(f, index[i].get(path[:-1], ROOT)) for path, f in complete[i]] for i in range(n)]

    best = algorithm1(all_nodes, need, n + nodes)
    found = algorithm1(plain(tree), need, n + nodes)
    assert (best is None) == (found is None)
    if best is not None and found is not None:
        assert total(plain(tree), found) == pytest.approx(total(all_nodes, best), abs=1e-9)


@given(st.integers(0, 2**32), st.sampled_from((torch.float32, torch.bfloat16)))
def test_probabilities_never_rise_whatever_the_rounding(seed: int, dtype: torch.dtype) -> None:
    """Log-probabilities near 0, and above it by rounding, as softmaxes of sharp rows give them."""
    generator = torch.Generator().manual_seed(seed)
    beam = Beam(3, torch.full((4,), 20))
    for step in range(20):
        rows = 1 if step == 0 else 3
        log_prob = ((torch.rand(4, rows, 3, generator=generator) - 0.9) * 1e-7).to(dtype)
        token = torch.arange(3).expand(4, rows, 3)
        beam.extend(token, log_prob)
    for nodes in plain(beam.tree()):
        for f, parent in nodes:
            assert 0 < f <= (1.0 if parent == ROOT else nodes[parent][0])


def test_impossible_tokens_and_broken_rows_become_padding() -> None:
    beam = Beam(2, torch.tensor([3, 3, 3]))
    nan, inf = math.nan, math.inf
    first = beam.extend(torch.tensor([[[4, 5]]] * 3), torch.tensor([[[-0.5, -inf]], [[nan, nan]], [[-0.5, -1.0]]]))
    assert (first.path_prob > 0).tolist() == [[True, False], [False, False], [True, True]]
    assert first.token.tolist() == [[4, 0], [0, 0], [4, 5]]
    second = beam.extend(torch.tensor([[[6, 7]] * 2] * 3), torch.full((3, 2, 2), -0.1))
    assert (second.path_prob > 0).tolist() == [[True, True], [False, False], [True, True]]
    assert second.parent[0].tolist() == [0, 0]  # both from the real one
    assert not beam.tree().path_prob.isnan().any()


def test_underflow_ends_a_path() -> None:
    beam = Beam(1, torch.tensor([5]))
    for _ in range(4):
        beam.extend(torch.tensor([[[1]]]), torch.tensor([[[-300.0]]]))
    assert (beam.tree().path_prob > 0).tolist() == [[True, True, False, False]]


def test_without_steps_there_are_no_candidates() -> None:
    tree = Beam(3, torch.tensor([3, 0])).tree()
    assert tree.token.shape == (2, 0)


def test_refuses_what_does_not_fit() -> None:
    def one_row(width: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.arange(width).view(1, 1, width), torch.full((1, 1, width), -1.0)

    with pytest.raises(ValueError, match="width"):
        Beam(0, torch.tensor([3]))
    with pytest.raises(ValueError, match="width"):
        Beam(MAX_NODES + 1, torch.tensor([3]))
    beam = Beam(32, torch.tensor([3]))
    beam.extend(*one_row(32))
    with pytest.raises(ValueError, match="exceed 63"):
        beam.extend(torch.zeros(1, 32, 32, dtype=torch.int64), torch.zeros(1, 32, 32))
    beam = Beam(2, torch.tensor([3]))
    beam.extend(*one_row(2))
    with pytest.raises(ValueError, match="cannot extend 1 rows"):
        beam.extend(*one_row(2))
