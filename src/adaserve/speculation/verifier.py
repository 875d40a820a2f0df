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

from adaserve.kernels.trees import walk
from adaserve.step import Verdict
from adaserve.tree import DraftTree


def verify(tree: DraftTree, drawn: Tensor, max_depth: int) -> Verdict:
    """Walk all trees at once and gather what each request gained; nothing is read by the host.

    drawn [B]: the target's draw at every row of the tree. `max_depth` is D, at least the deepest node's depth.
    Returns tokens [n, D + 1] (padded with 0), length [n] and accepted [B].
    """
    if max_depth == 0 and tree.rows == tree.count.shape[0]:  # roots alone: nothing to walk
        one = torch.ones_like(drawn)
        return Verdict(drawn[:, None], one, one.bool())
    return Verdict(*walk(tree, drawn, max_depth))
