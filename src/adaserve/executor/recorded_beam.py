"""The beam of speculation/beam.py over recorded positions instead of a draft model's logits; numpy, all requests at once.

A node is *on* the path when its token and those of its ancestors are the target's own. Its children's probabilities are the
recorded ones of the next position. What the draft would say after a wrong token was not recorded: other positions stand in.
Tokens are ranks: a node's token is its rank among its parent's candidates, the true token of a position is its recorded rank.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaserve.tree import ROOT

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class GrownTrees:
    """Candidate trees of n requests, N = depth * width columns, as in CandidateTree; `on` [n, N]: on the true path."""

    token: Ints
    parent: Ints
    path_prob: Floats
    on: Bools


def grow(prob: Floats, rank: Ints, ahead: Ints, aside: Ints, room: Ints, width: int) -> GrownTrees:
    """Grow the trees of n requests, as deep as `ahead` has columns.

    prob [P, W], rank [P]   the recording's tables
    ahead [n, d]            position along the true path for every depth
    aside [n, d, width]     positions for nodes off it
    room [n]                deepest node that each request may use; 0: it does not draft
    """
    if width == 1:
        return _chains(prob, rank, ahead, aside[:, :, 0], room)
    return grow_by_depth(prob, rank, ahead, aside, room, width)


def _chains(prob: Floats, rank: Ints, ahead: Ints, aside: Ints, room: Ints) -> GrownTrees:
    """`grow` for width 1, all depths at once: a chain is right as long as every first choice so far was."""
    n, depth = ahead.shape
    column = np.arange(depth)  # [d]
    fits = column < room[:, None]  # [n, d]
    on = np.logical_and.accumulate((rank[ahead] == 0) & fits, axis=1)  # [n, d]
    above_on = np.ones_like(on)
    above_on[:, 1:] = on[:, :-1]
    best = prob[np.where(above_on, ahead, aside), 0]  # [n, d]
    best[~fits] = 0.0
    return GrownTrees(
        token=np.zeros((n, depth), dtype=np.int64),
        parent=np.broadcast_to(column - 1, (n, depth)).copy(),  # the first stands at ROOT
        path_prob=np.multiply.accumulate(best, axis=1),
        on=on,
    )


def grow_by_depth(prob: Floats, rank: Ints, ahead: Ints, aside: Ints, room: Ints, width: int) -> GrownTrees:
    """`grow` depth by depth, for any width: what trees take, and the slow twin of chains."""
    n, depth = ahead.shape
    ranks = min(width, prob.shape[1])
    best, truth = prob[:, :ranks], rank[ahead]  # [P, k], [n, d]
    row = np.arange(n)[:, None]  # [n, 1]
    f, on = np.ones((n, 1)), np.ones((n, 1), dtype=bool)  # [n, r]: the last depth's nodes, the root at first
    shallow = room.min(initial=depth) < depth
    tokens, parents, probs, ons = [], [], [], []
    for step in range(depth):
        at = np.where(on, ahead[:, step, None], aside[:, step, : f.shape[1]])  # [n, r]
        score = (f[:, :, None] * best[at]).reshape(n, -1)  # [n, r * k]
        if shallow:
            score[room <= step] = 0.0
        pick = np.argsort(-score, axis=1, kind="stable")[:, :width]  # [n, w], or fewer in a first step of few ranks
        above, token = pick // ranks, pick % ranks
        f = score[row, pick]
        on = on[row, above] & (token == truth[:, step, None]) & (f > 0)
        if pick.shape[1] < width:
            f, on, above, token = (np.pad(x, ((0, 0), (0, width - pick.shape[1]))) for x in (f, on, above, token))
        tokens.append(token)
        parents.append(above + (step - 1) * width if step else np.full_like(above, ROOT))
        probs.append(f)
        ons.append(on)
    return GrownTrees(*(np.concatenate(parts, axis=1) for parts in (tokens, parents, probs, ons)))
