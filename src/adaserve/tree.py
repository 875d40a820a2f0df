"""Flat token trees and pure functions on them. Letters as in docs/notation.md: n requests, N candidate columns, B packed rows.

A tree's root is the request's last known token; it is implicit in a CandidateTree and a row of its own in a DraftTree.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn.functional import pad

MAX_NODES = 63
"""Draft nodes a request may have verified at once: an ancestor mask is one signed 64-bit word."""

ROOT = -1
"""Parent of the root's children in `CandidateTree.parent`."""


class Source(IntEnum):
    """Which drafter proposed a node, as `CandidateTree.source` numbers them."""

    MODEL = 0
    NGRAM = 1
    BOTH = 2


@dataclass(frozen=True)
class CandidateTree:
    """What the drafters propose, one tree per request. Parents stand before their children; a drafter's columns are depth-major.

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

    def resized(self, count: int) -> "CandidateTree":
        """The trees of so many requests: the first of these, or these and such as hold padding alone.  [count, N]"""
        more = count - self.token.shape[0]
        if more == 0:
            return self
        return CandidateTree(*(x[:count] if more < 0 else pad(x, (0, 0, 0, more)) for x in vars(self).values()))


@dataclass(frozen=True)
class DraftTree:
    """The roots and the chosen nodes of all requests, packed. A request's rows are contiguous: its root, its nodes by column.

    A tree of static size ends in padding rows: row = n, a request that does not exist; token, node, mask, column and source 0;
    depth 1 but its own parent, so it is neither a root nor connected to one, and no walk from a root ever accepts it.

    token   [B] int64  token of each row; the root's is the request's last known token
    parent  [B] int64  packed row of its parent; a root is its own parent
    row     [B] int64  which of the n requests
    depth   [B] int64  0 for roots; a row's position = the root's position + depth
    node    [B] int64  index among the request's own nodes, its place in the scratch tail; 0 for roots, which have none
    mask    [B] int64  ancestor bits over the request's nodes, its own included; 0 for roots
    column  [B] int64  the CandidateTree column it came from; 0 for roots
    source  [B] int64  which drafter proposed it; 0 for roots
    count   [n] int64  draft nodes of each request
    """

    token: Tensor
    parent: Tensor
    row: Tensor
    depth: Tensor
    node: Tensor
    mask: Tensor
    column: Tensor
    source: Tensor
    count: Tensor

    @property
    def rows(self) -> int:
        """B, how many packed rows, padding included."""
        return self.token.shape[0]

    @property
    def root(self) -> Tensor:
        """The packed row of each request's root, [n] int64."""
        length = self.count + 1  # [n]
        return length.cumsum(0) - length


def pack(candidates: CandidateTree, chosen: Tensor, root_token: Tensor, size: int | None = None) -> DraftTree:
    """Pack the roots and the chosen nodes of all requests into flat rows.

    chosen      [n, N] bool   connected: a chosen node's parent is chosen or the root; at most MAX_NODES a request; no padding
    root_token  [n] int64     each request's last known token
    size        packed rows B. None packs exactly what was chosen, which waits for the device to learn how much that is; a number
                gives static shapes without waiting, and must hold all roots and chosen nodes: rows past it would be lost.

    Raises ValueError when `size` cannot hold even the roots, and with size None when a request has more than MAX_NODES nodes.
    """
    n, columns = candidates.token.shape
    device = candidates.token.device
    cells = columns + 1  # a request's root, then its columns: flat cell = request * cells + column + 1

    count = chosen.sum(1)  # [n]
    if size is None:
        size = n + int(count.sum())
        if size > n and int(count.max()) > MAX_NODES:
            raise ValueError(f"a request may have at most {MAX_NODES} nodes verified, {int(count.max())} were chosen")
    elif size < n:
        raise ValueError(f"{size} rows cannot hold {n} roots")
    if size == n and columns == 0:
        return _roots(root_token)

    # The flat arrays of cells end in a spare one, which no request owns: padding rows are copies of it.
    spare = n * cells
    keep = pad(pad(chosen, (1, 0), value=True).flatten(), (0, 1))  # [n * cells + 1]
    place = keep.cumsum(0) - 1  # [n * cells + 1], the packed row of every kept cell
    index = torch.arange(size, device=device)  # [B]
    live = index <= place[-1]  # [B], False for padding
    # A stable argsort leaves the kept cells in their order, which is the packed order; unlike nonzero it has a static shape.
    cell = keep.to(torch.uint8).argsort(descending=True, stable=True)[:size]
    cell = torch.where(live, pad(cell, (0, size - cell.shape[0])), spare)  # [B]

    request = cell // cells  # [B], n for padding
    above = pad(pad(candidates.parent + 1, (1, 0)).flatten(), (0, 1))[cell]  # [B], the parent's cell in its request
    parent = torch.where(live, place[request * cells + above], index)
    is_node = cell % cells > 0  # [B]
    node = torch.where(is_node, index - place[request * cells] - 1, 0)
    return DraftTree(
        token=pad(torch.cat([root_token[:, None], candidates.token], 1).flatten(), (0, 1))[cell],
        parent=parent,
        row=request,
        depth=pad(pad(candidates.depth, (1, 0)).flatten(), (0, 1), value=1)[cell],
        node=node,
        mask=ancestor_mask(torch.where(is_node, 1 << node, 0), parent, min(columns, MAX_NODES)),
        column=(cell % cells - 1).clamp(min=0),
        source=pad(pad(candidates.source, (1, 0)).flatten(), (0, 1))[cell],
        count=count,
    )


def _roots(token: Tensor) -> DraftTree:
    """Trees of roots alone, as plain decoding has them, in few operations: on a GPU each is a launch.  token [n]"""
    row, nothing = torch.arange(len(token), device=token.device), torch.zeros_like(token)  # [n]
    return DraftTree(token, row, row, nothing, nothing, nothing, nothing, nothing, nothing)


def ancestor_mask(bit: Tensor, parent: Tensor, depth: int) -> Tensor:
    """Gather every row's own bit and those of all its ancestors, [B] int64.

    bit [B] int64: each row's own bit; parent [B] int64: row of its parent, a root being its own; depth: of the deepest row.
    """
    # mask[v] = bit[v] | mask[parent[v]], by pointer jumping: each round doubles how far up the path the mask reaches.
    mask = bit
    for _ in range(max(depth - 1, 0).bit_length()):
        mask = mask | mask[parent]
        parent = parent[parent]
    return mask


def edge_prob(candidates: CandidateTree) -> Tensor:
    """Return f(v) / f(parent), the probability that a node is accepted once its parent is: [n, N] float64, 0 for padding."""
    prob = pad(candidates.path_prob, (1, 0), value=1.0)  # [n, 1 + N], the root's f is 1
    above = prob.gather(1, candidates.parent + 1)  # [n, N]
    return torch.where(candidates.path_prob > 0, candidates.path_prob / above, 0.0)


def along_paths(edge: Tensor, parent: Tensor, depth: int) -> Tensor:
    """The product of `edge` [n, N] from the root to every node: [n, N].

    parent [n, N] as in CandidateTree; depth: of the deepest node. A node's product is its edge times its parent's product and
    nothing else, so with edges up to 1 it never rises along a path, whatever the rounding.
    """
    product = edge
    for _ in range(depth - 1):
        product = edge * pad(product, (1, 0), value=1.0).gather(1, parent + 1)
    return product


def merge(first: CandidateTree, second: CandidateTree, depth: int) -> CandidateTree:
    """Join what two drafters propose for the same n requests into one tree each; depth: of the deepest node.

    Columns are those of `first`, then those of `second`. A node of `second` that `first` has too, by the tokens of its path,
    becomes padding, and that of `first` is of both sources; refused only if both would be, its edge is 1 - (1 - e)(1 - e').
    Siblings stay distinct, and f never rises along a path.  [n, N1 + N2]
    """
    n, columns = first.token.shape
    edge, others = edge_prob(first), edge_prob(second)
    source = first.source
    # Where the root and the columns of `second` went, [n, 1 + j].
    image = torch.full((n, 1), ROOT, dtype=torch.int64, device=edge.device)
    parents, fresh = [], []
    for j in range(second.token.shape[1]):
        above = image.gather(1, second.parent[:, j : j + 1] + 1)  # [n, 1]
        same = (first.parent == above) & (first.token == second.token[:, j : j + 1])
        same &= (first.path_prob > 0) & (second.path_prob[:, j : j + 1] > 0)  # [n, N1], one at most
        found = same.any(1, keepdim=True)  # [n, 1]
        at = torch.where(found, same.to(torch.uint8).argmax(1, keepdim=True) if columns else ROOT, columns + j)
        edge = torch.where(same, 1 - (1 - edge) * (1 - others[:, j : j + 1]), edge)
        source = torch.where(same, int(Source.BOTH), source)
        parents.append(above)
        fresh.append(~found)
        image = torch.cat([image, at], 1)
    if not parents:
        return first
    edge = torch.cat([edge, torch.where(torch.cat(fresh, 1), others, 0.0)], 1)  # [n, N1 + N2]
    parent = torch.cat([first.parent, *parents], 1)
    return CandidateTree(
        token=torch.cat([first.token, second.token], 1),
        parent=parent,
        depth=torch.cat([first.depth, second.depth], 1),
        path_prob=along_paths(edge, parent, depth),
        source=torch.cat([source, second.source], 1),
    )
