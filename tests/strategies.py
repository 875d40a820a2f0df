"""Hypothesis strategies, and plain generators for bulk tests, of candidate trees and of all that selection is given."""

import random
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from adaserve.step import Limits, Order
from adaserve.tree import ROOT, CandidateTree, Source
from tests.oracles.algorithm1 import Tree

TIED = (1.0, 0.5, 0.25)
"""Edge probabilities that make many ties, and whose products and small sums are exact in floating point."""


@dataclass(frozen=True)
class Batch:
    """What a selection is given."""

    candidates: CandidateTree
    need: torch.Tensor  # [n] float64
    limits: Limits
    temperature: torch.Tensor  # [n] float64


def random_candidates(rng: random.Random, n: int, columns: int, tied: bool) -> CandidateTree:
    """Trees of all shapes between chain and star, with padding strewn between the nodes.

    tied: edge probabilities from TIED, 1 among them, instead of the whole of (0, 1].
    """
    token, parent, depth, prob = ([[0] * columns for _ in range(n)] for _ in range(4))
    for i in range(n):
        parent[i], depth[i], prob[i] = [ROOT] * columns, [1] * columns, [0.0] * columns
        bushy = rng.random()
        above = ROOT  # never goes back, so depths never fall
        real: list[int] = []
        for column in sorted(rng.sample(range(columns), rng.randint(0, columns))):
            if real and (rng.random() > bushy or rng.random() < 0.1):
                later = [v for v in real if v > above]
                above = rng.choice(later[:3]) if later else above
            siblings = sum(parent[i][v] == above for v in real)
            edge = rng.choice(TIED) if tied else max(rng.random(), 1e-6)
            token[i][column], parent[i][column] = siblings, above
            depth[i][column] = 1 if above == ROOT else depth[i][above] + 1
            prob[i][column] = edge if above == ROOT else edge * prob[i][above]
            real.append(column)
    ids = (torch.tensor(x, dtype=torch.int64).view(n, columns) for x in (token, parent, depth))
    f = torch.tensor(prob, dtype=torch.float64).view(n, columns)
    source = [[rng.randrange(len(Source)) for _ in range(columns)] for _ in range(n)]
    return CandidateTree(*ids, f, torch.tensor(source, dtype=torch.int64).view(n, columns))


def random_batch(rng: random.Random, max_requests: int = 6, max_columns: int = 16) -> Batch:
    """Candidates, needs from none to hopeless, and limits from nothing to more than there is."""
    n, columns = rng.randint(0, max_requests), rng.randint(0, max_columns)
    candidates = random_candidates(rng, n, columns, tied=rng.random() < 0.5)
    deepest = int(candidates.depth.max()) if n * columns else 0
    need = [rng.choice((0.0, 1.0, 1.5, 2.0, rng.uniform(0, deepest + 2), 1e9)) for _ in range(n)]
    limits = Limits(
        nodes=rng.randint(0, rng.choice((3, n * columns // 2 + 1, n * columns + 2))),
        per_request=rng.randint(0, columns + 1),
        depth=deepest,
        order=rng.choice(tuple(Order)),
    )
    temperature = [rng.choice((0.0, 0.0, 0.5, 1.0)) for _ in range(n)]
    wanted, drawn_at = (torch.tensor(x, dtype=torch.float64) for x in (need, temperature))
    return Batch(candidates, wanted, limits, drawn_at)


def seeds() -> st.SearchStrategy[random.Random]:
    """Random generators for the functions above: quick to draw, and reported by seed when a test fails."""
    return st.integers(0, 2**32 - 1).map(random.Random)


def candidate_trees(max_requests: int = 5, max_columns: int = 20) -> st.SearchStrategy[CandidateTree]:
    """Trees of `random_candidates`."""
    sizes = st.integers(0, max_requests), st.integers(0, max_columns)
    return st.builds(random_candidates, seeds(), *sizes, st.booleans())


def batches(max_requests: int = 6, max_columns: int = 16) -> st.SearchStrategy[Batch]:
    """Batches of `random_batch`."""
    return st.builds(random_batch, seeds(), st.integers(0, max_requests), st.integers(0, max_columns))


def greedy(candidates: CandidateTree) -> torch.Tensor:
    """Temperature 0 for every request, [n]."""
    return torch.zeros(len(candidates.token), dtype=torch.float64)


def plain(candidates: CandidateTree) -> list[Tree]:
    """The trees as the oracles read them."""
    pairs = zip(candidates.path_prob.tolist(), candidates.parent.tolist(), strict=True)
    return [list(zip(f, parent, strict=True)) for f, parent in pairs]


def node_sets(mask: torch.Tensor) -> list[set[int]]:
    """The columns that are set in each row of a mask [n, N]."""
    return [{column for column, is_set in enumerate(row) if is_set} for row in mask.tolist()]


def is_connected(candidates: CandidateTree, chosen: torch.Tensor) -> bool:
    """Whether every chosen node's parent is chosen or the root, and no padding is chosen."""
    for tree, nodes in zip(plain(candidates), node_sets(chosen), strict=True):
        if any(tree[v][0] <= 0 or (tree[v][1] != ROOT and tree[v][1] not in nodes) for v in nodes):
            return False
    return True
