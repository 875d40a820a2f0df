"""Flat token trees and pure functions on them. Letters as in docs/notation.md: n requests, N candidate columns, B packed rows.

A tree's root is the request's last known token; it is implicit in a CandidateTree and a row of its own in a DraftTree.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_NODES = 63
"""Draft nodes a request may have verified at once: an ancestor mask is one signed 64-bit word."""

ROOT = -1
"""Parent of the root's children in `CandidateTree.parent`."""


@dataclass(frozen=True)
class CandidateTree:
    """What the drafters propose, one tree per request. Columns are depth-major: parents stand before their children.

    token      [n, N] int64    token of each node
    parent     [n, N] int64    column of its parent, ROOT for children of the root
    depth      [n, N] int64    1 for children of the root
    path_prob  [n, N] float64  f(v), the estimated probability that the whole path is accepted; never rises along a path;
                               0 marks padding
    source     [n, N] int64    which drafter proposed it
    Children of one parent carry different tokens.
    """

    token: Tensor
    parent: Tensor
    depth: Tensor
    path_prob: Tensor
    source: Tensor

    @staticmethod
    def empty(n: int, device: torch.device | str = "cpu") -> "CandidateTree":
        """Trees of n requests that hold no candidates: plain decoding."""
        ids = torch.zeros(n, 0, dtype=torch.int64, device=device)  # [n, 0]
        return CandidateTree(ids, ids, ids, ids.double(), ids)

    @property
    def requests(self) -> int:
        """n, how many requests."""
        return self.token.shape[0]

    @property
    def columns(self) -> int:
        """N, how many candidate columns each request has, padding included."""
        return self.token.shape[1]


@dataclass(frozen=True)
class DraftTree:
    """The chosen nodes and the roots of all requests, packed. A request's rows are contiguous: its root, then its nodes depth-major.

    token   [B] int64  token of each row; the root's is the request's last known token
    parent  [B] int64  packed row of its parent; a root is its own parent
    row     [B] int64  which of the n requests
    depth   [B] int64  0 for roots; a row's position = the root's position + depth
    node    [B] int64  index among the request's own nodes, its place in the scratch tail; 0 for roots, which have none
    mask    [B] int64  ancestor bits over the request's nodes, its own included; 0 for roots
    column  [B] int64  the CandidateTree column it came from; 0 for roots
    count   [n] int64  draft nodes of each request
    """

    token: Tensor
    parent: Tensor
    row: Tensor
    depth: Tensor
    node: Tensor
    mask: Tensor
    column: Tensor
    count: Tensor
