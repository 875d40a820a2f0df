"""Draft trees and a toy target for tests of drawing and verification."""

import random
import zlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adaserve.tree import ROOT, CandidateTree, DraftTree, pack

Node = tuple[int, int]
"""(parent's index in the list or ROOT, token); parents first, in order of depth."""


def random_nodes(rng: random.Random, most: int, deepest: int, propose: Callable[[list[int]], int]) -> list[Node]:
    """Grow a tree node by node; `propose(path)` names a token to follow a path of tokens below the root."""
    paths: list[list[int]] = []
    for _ in range(rng.randint(0, most)):
        above = rng.choice([[], *(path for path in paths if len(path) < deepest)])
        path = [*above, propose(above)]
        if path not in paths:
            paths.append(path)
    paths.sort(key=len)
    return [(paths.index(path[:-1]) if len(path) > 1 else ROOT, path[-1]) for path in paths]


def packed(trees: Sequence[Sequence[Node]], roots: Sequence[int], size: int | None = None) -> DraftTree:
    """Pack one list of nodes per request."""
    n, columns = len(trees), max((len(nodes) for nodes in trees), default=0)
    token, parent, depth = ([[fill] * columns for _ in range(n)] for fill in (0, ROOT, 0))
    for request, nodes in enumerate(trees):
        for column, (above, own) in enumerate(nodes):
            token[request][column], parent[request][column] = own, above
            depth[request][column] = 1 if above == ROOT else depth[request][above] + 1
    tensors = (torch.tensor(values, dtype=torch.int64).view(n, columns) for values in (token, parent, depth))
    chosen = torch.tensor([[column < len(nodes) for column in range(columns)] for nodes in trees]).bool().view(n, columns)
    candidates = CandidateTree(*tensors, chosen.double(), torch.zeros(n, columns, dtype=torch.int64))
    return pack(candidates, chosen, torch.tensor(list(roots), dtype=torch.int64), size)


def path_of(tree: DraftTree, row: int) -> list[int]:
    """The tokens from below the root down to a packed row."""
    path: list[int] = []
    while tree.depth[row] > 0 and tree.parent[row] != row:
        path.insert(0, int(tree.token[row]))
        row = int(tree.parent[row])
    return path


class ToyTarget:
    """A target whose logits are random numbers fixed by the whole sequence so far."""

    def __init__(self, vocab_size: int, seed: int, scale: float = 2.0) -> None:
        self.vocab_size, self.seed, self.scale = vocab_size, seed, scale

    def logits(self, sequence: Sequence[int]) -> Tensor:
        """Return the logits of the token after `sequence`, [V] float64."""
        generator = torch.Generator().manual_seed(zlib.crc32(repr((self.seed, *sequence)).encode()))
        return torch.randn(self.vocab_size, generator=generator, dtype=torch.float64) * self.scale
