"""Verification by matching: walk each tree along the tokens that the target itself drew.

    drawn[v]   the target's own draw for the token after node v, from its processed distribution there
    match      a node carries the token that was drawn at its parent
    accepted   it and all its ancestors match; the root always is
    gained     the draws at the accepted rows, in order of depth: the accepted path's tokens, then the extra token

The gained tokens are draws of the target and nothing else, so no drafter, tree shape or selection can change their
distribution; with keyed noise not even their values. No draft probabilities are needed. A node is accepted with the target's
probability of its path, so a tree gains 1 + sum f(v) tokens in expectation when f is that probability.
"""

import torch
from torch import Tensor

from adaserve.step import Verdict
from adaserve.tree import DraftTree


def accepted_rows(tree: DraftTree, drawn: Tensor, max_depth: int) -> Tensor:
    """Say which packed rows lie on the accepted path, roots included: [B] bool.

    drawn [B]: the target's draw at every row. `max_depth` is at least the deepest node's depth, known to the host.
    Children of one parent carry different tokens, so the accepted rows of a request are one path.
    """
    is_root = tree.depth == 0  # [B]
    match = tree.token == drawn[tree.parent]  # [B]
    accepted = is_root
    for _ in range(max_depth):
        accepted = is_root | (match & accepted[tree.parent])
    return accepted


def verify(tree: DraftTree, drawn: Tensor, max_depth: int) -> Verdict:
    """Walk all trees at once and gather what each request gained; d rounds of tensor operations, nothing read by the host.

    drawn [B]: the target's draw at every row of the tree. `max_depth` is D, at least the deepest node's depth.
    Returns tokens [n, D + 1] (padded with 0), length [n] and accepted [B].
    """
    n, width = tree.count.shape[0], max_depth + 1
    if tree.rows == n and max_depth == 0:  # roots alone: nothing to walk
        one = torch.ones_like(drawn)
        return Verdict(drawn[:, None], one, one.bool())
    accepted = accepted_rows(tree, drawn, max_depth)
    # Rows off the path write to a spare cell behind the last request's.
    cell = torch.where(accepted, tree.row * width + tree.depth, n * width)  # [B]
    tokens = drawn.new_zeros(n * width + 1).scatter(0, cell, drawn)[:-1].view(n, width)
    length = tree.count.new_zeros(n + 1).scatter_add(0, tree.row, accepted.long())[:-1]  # padding rows belong to request n
    return Verdict(tokens, length, accepted)
