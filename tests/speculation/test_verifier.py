import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.runtime.noise import gumbel_noise
from adaserve.speculation.verifier import verify
from adaserve.tree import ROOT
from tests.oracles import sampling as oracle
from tests.oracles.drafts import Node, ToyTarget, packed, path_of, random_nodes


@given(st.integers(0, 10**9), st.integers(1, 5), st.integers(0, 7), st.integers(0, 3))
def test_equals_a_walk_by_hand(seed: int, n: int, padding: int, surplus: int) -> None:
    rng = random.Random(seed)
    trees = [random_nodes(rng, 12, 5, lambda path: rng.randrange(3)) for _ in range(n)]
    tree = packed(trees, [rng.randrange(3) for _ in range(n)], n + sum(map(len, trees)) + padding)
    drawn = torch.tensor([rng.randrange(3) for _ in range(tree.rows)])
    max_depth = max([0, *(len(path_of(tree, row)) for row in range(tree.rows - padding))]) + surplus
    verdict = verify(tree, drawn, max_depth)
    live = tree.rows - padding
    walked = oracle.walk(*(values[:live].tolist() for values in (tree.token, tree.parent, tree.row, tree.depth, drawn)))
    assert verdict.tokens.shape == (n, max_depth + 1)
    for request in range(n):
        tokens, _ = walked[request]
        assert verdict.length[request] == len(tokens)
        assert verdict.tokens[request].tolist() == tokens + [0] * (max_depth + 1 - len(tokens))
    passed = {row for _, rows in walked.values() for row in rows}
    assert verdict.accepted.tolist() == [row in passed for row in range(tree.rows)]


def test_plain_decoding_gains_the_drawn_token() -> None:
    verdict = verify(packed([[], []], [5, 6]), torch.tensor([7, 8]), 0)
    assert verdict.tokens.tolist() == [[7], [8]] and verdict.length.tolist() == [1, 1] and verdict.accepted.all()


def test_no_requests() -> None:
    verdict = verify(packed([], []), torch.zeros(0, dtype=torch.int64), 2)
    assert verdict.tokens.shape == (0, 3) and verdict.length.shape == (0,)


# Distributions, exactly: every possible outcome of the draws at all rows of a small tree is one request of a batch.

SHAPES: list[list[Node]] = [
    [],
    [(ROOT, 1)],
    [(ROOT, 0), (ROOT, 2), (0, 1)],
    [(ROOT, 0), (0, 0), (1, 0)],
    [(ROOT, 0), (ROOT, 1), (0, 2), (1, 2), (1, 0)],
    [(ROOT, 0), (ROOT, 1), (ROOT, 2), (0, 0), (2, 1)],
]


def conditional(target: ToyTarget, path: list[int]) -> torch.Tensor:
    return target.logits([9, *path]).softmax(0)


def outcomes(nodes: list[Node], target: ToyTarget) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Verify one request per possible outcome: its probability [n], tokens [n, D + 1] and length [n]."""
    vocab_size = target.vocab_size
    single = packed([nodes], [1])
    assignments = torch.tensor(list(itertools.product(range(vocab_size), repeat=single.rows)))  # [n, rows]
    conditionals = torch.stack([conditional(target, path_of(single, row)) for row in range(single.rows)])  # [rows, V]
    probability = conditionals[torch.arange(single.rows), assignments].prod(dim=1)  # [n]
    verdict = verify(packed([nodes] * len(assignments), [1] * len(assignments)), assignments.flatten(), 3)
    return probability, verdict.tokens, verdict.length


@pytest.mark.parametrize("nodes", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_distribution_of_gained_tokens_is_the_target_chain(nodes: list[Node], seed: int) -> None:
    target = ToyTarget(3, seed)
    probability, tokens, length = outcomes(nodes, target)
    assert abs(probability.sum().item() - 1) < 1e-12
    for size in (1, 2, 3):
        for wanted in itertools.product(range(3), repeat=size):
            # What verification gained, continued by plain decoding to `size` tokens.
            total = 0.0
            for weight, row, gained in zip(probability.tolist(), tokens.tolist(), length.tolist(), strict=True):
                prefix = tuple(row[: min(gained, size)])
                if prefix == wanted[: len(prefix)]:
                    for place in range(len(prefix), size):
                        weight *= conditional(target, list(wanted[:place]))[wanted[place]].item()
                    total += weight
            expected = 1.0
            for place in range(size):
                expected *= conditional(target, list(wanted[:place]))[wanted[place]].item()
            assert abs(total - expected) < 1e-12


@pytest.mark.parametrize("nodes", SHAPES)
def test_expected_gain_is_one_plus_the_sum_of_path_probabilities(nodes: list[Node]) -> None:
    target = ToyTarget(3, 11)
    probability, _, length = outcomes(nodes, target)
    single = packed([nodes], [1])
    total = 1.0
    for row in range(1, single.rows):
        path = path_of(single, row)
        f = 1.0
        for place, token in enumerate(path):
            f *= conditional(target, path[:place])[token].item()
        total += f
    assert abs((probability * length).sum().item() - total) < 1e-12


def test_control_ratio_acceptance_of_chosen_nodes_is_wrong() -> None:
    # What method.md warns of: nodes picked for their draft probability, accepted with min(1, p / q). Exact, for one position.
    def distance(p: torch.Tensor, q: torch.Tensor) -> float:
        chosen = q.argmax()
        accept = torch.clamp(p[chosen] / q[chosen], max=1)
        residual = (p - q).clamp(min=0)
        found = (1 - accept) * residual / residual.sum()
        found[chosen] += accept
        return 0.5 * (found - p).abs().sum().item()

    distances = [
        distance(ToyTarget(3, 2 * seed).logits([]).softmax(0), ToyTarget(3, 2 * seed + 1).logits([]).softmax(0))
        for seed in range(100)
    ]
    assert sum(distances) / len(distances) > 0.1

    target = ToyTarget(3, 0)
    probability, tokens, _ = outcomes([(ROOT, 1)], target)
    found = torch.zeros(3, dtype=torch.float64).scatter_add(0, tokens[:, 0], probability)
    assert 0.5 * (found - conditional(target, [])).abs().sum().item() < 1e-12


def test_measured_gain_equals_the_sum_when_f_is_true() -> None:
    # The same with the noise that is used: one seed a request, thousands of requests, nodes chosen by their true probability.
    target, n, vocab_size, depth = ToyTarget(6, 5), 6000, 6, 3
    paths = [path for size in (1, 2, 3) for path in itertools.product(range(vocab_size), repeat=size)]
    f = {(): 1.0}
    for path in paths:
        f[path] = f[path[:-1]] * conditional(target, list(path[:-1]))[path[-1]].item()
    best = sorted(sorted(paths, key=lambda path: -f[path])[:12], key=len)
    nodes = [(best.index(path[:-1]) if len(path) > 1 else ROOT, path[-1]) for path in best]
    single = packed([nodes], [1])
    seed, nothing = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    drawn = torch.empty(n, single.rows, dtype=torch.int64)
    for row in range(single.rows):
        noise = gumbel_noise(seed, nothing, nothing + 50 + single.depth[row], vocab_size)  # [n, V]
        drawn[:, row] = (target.logits([9, *path_of(single, row)]) + noise).argmax(dim=1)
    gained = verify(packed([nodes] * n, [1] * n), drawn.flatten(), depth).length.double()
    expected = 1 + sum(f[path] for path in best)
    assert expected > 1.5
    assert abs(gained.mean().item() - expected) < 4.5 * gained.std().item() / n**0.5
