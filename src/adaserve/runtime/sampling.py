"""The draw: one token for every row of the target's pass, from the row's processed distribution.

A row is a root, a draft node or the last row of a prompt chunk; all are drawn alike. What depends on earlier tokens sees the
row's own path: the request's known tokens and, for a draft node, its ancestors and itself. So the token drawn at a node is the
one that plain decoding would draw there, and it does not matter which tree or batch the node stands in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adaserve.kernels.gumbel import finite_at, greedy_argmax, perturbed_argmax
from adaserve.kernels.truncation import Truncation
from adaserve.runtime import processors
from adaserve.runtime.table import SamplingTable, Traits
from adaserve.tree import DraftTree


@dataclass(frozen=True)
class DrawRows:
    """Where each of R rows stands.

    slot      [R] int64  slot of its request
    position  [R] int64  absolute position of the token that is drawn from it: one past its own
    token     [R] int64  the row's own token
    parent    [R] int64  its parent among the rows; roots and prompt rows are their own
    depth     [R] int64  0 for roots and prompt rows
    max_depth            at least the greatest depth, known to the host
    traits               what the requests that occur need together, known to the host
    """

    slot: Tensor
    position: Tensor
    token: Tensor
    parent: Tensor
    depth: Tensor
    max_depth: int
    traits: Traits

    @staticmethod
    def of(tree: DraftTree, slot_of: Tensor, traits: Traits, known: Tensor, max_depth: int) -> "DrawRows":
        """Describe the rows of a tree, followed by one row for each prompt chunk that draws.

        slot_of [n + C]: slots of the tree's n requests, then those of the chunks; traits: what all of them need (SamplingTable);
        known [slots]: how many tokens of each slot are known, the root or the chunk's last token included.
        """
        device = tree.token.device
        chunk = slot_of[tree.count.shape[0] :]  # [C]
        # Padding rows belong to request n, which does not exist; some other slot's parameters serve for their idle draws.
        slot = slot_of[tree.row.clamp(max=slot_of.shape[0] - 1)]  # [B]
        if not len(chunk):
            return DrawRows(slot, known[slot] + tree.depth, tree.token, tree.parent, tree.depth, max_depth, traits)
        slot = torch.cat([slot, chunk])  # [R]
        own = torch.arange(tree.token.shape[0], slot.shape[0], device=device)  # [C]
        nothing = torch.zeros_like(own)
        depth = torch.cat([tree.depth, nothing])
        return DrawRows(
            slot=slot,
            position=known[slot] + depth,
            token=torch.cat([tree.token, nothing]),
            parent=torch.cat([tree.parent, own]),
            depth=depth,
            max_depth=max_depth,
            traits=traits,
        )


@dataclass(frozen=True)
class History:
    """The known tokens of all slots: tokens [slots, L] int64, of which the first known [slots] int64 count."""

    tokens: Tensor
    known: Tensor


@dataclass(frozen=True)
class Draws:
    """What was drawn: token [R] int64, below the vocabulary size; finite [R] bool, false where the token means nothing."""

    token: Tensor
    finite: Tensor


def draw(logits: Tensor, rows: DrawRows, table: SamplingTable, history: History) -> Draws:
    """Draw a token for every row.

    logits [R, V] floating. A row is finite when its logits hold neither NaN nor +inf and some token is possible.
    Returns the same token for a row whatever the other rows are.
    """
    traits = rows.traits
    if not traits.edits_logits:
        return _draw(logits, rows.slot, rows.position, table, traits)
    # Only rows of requests that ask are edited, where finding them costs no synchronisation; elsewhere all rows are, with
    # parameters that change nothing for the others.
    every = torch.arange(len(rows.slot), device=logits.device)  # [R]
    affected = every if logits.is_cuda else every[table.edits[rows.slot]]  # [A]
    edited = process(logits, affected, rows, table, history)
    part = _draw(edited, rows.slot[affected], rows.position[affected], table, traits)
    if len(affected) == len(rows.slot):
        return part
    plain = _draw(logits, rows.slot, rows.position, table, traits)
    return Draws(plain.token.index_copy(0, affected, part.token), plain.finite.index_copy(0, affected, part.finite))


def process(logits: Tensor, affected: Tensor, rows: DrawRows, table: SamplingTable, history: History) -> Tensor:
    """Return logits of the affected rows after bias, penalties and minimum length, [A, V] float32 or float64; a new tensor."""
    traits = rows.traits
    slot, position = rows.slot[affected], rows.position[affected]  # [A]
    work = logits[affected]
    if work.dtype not in (torch.float32, torch.float64):
        work = work.float()
    if traits.bias:
        processors.add_bias(work, table.bias.ids[slot], table.bias.numbers[slot])
    if traits.history:
        ids, count = path_tokens(affected, rows, table, history)
        processors.penalise(work, ids, count, table.repetition[slot], table.frequency[slot], table.presence[slot])
    if traits.minimum:
        processors.forbid(work, table.stops.ids[slot], position < table.shortest[slot])
    return work


def path_tokens(affected: Tensor, rows: DrawRows, table: SamplingTable, history: History) -> tuple[Tensor, Tensor]:
    """List what each affected row can look back on: its request's known tokens, then those of its own path below the root.

    Returns ids [A, K], repeated as they stand there and padded with known ones, and count [A, K]: how often each stands in the
    output. Every slot has at least one known token.
    """
    slot = rows.slot[affected]  # [A]
    # Occurrences are counted once for each request, not for each row.
    requests, place = (table.every_slot, slot) if slot.is_cuda else slot.unique(return_inverse=True)  # [H], [A]
    longest = history.tokens.shape[1] if slot.is_cuda else int(history.known[requests].max())
    index = torch.arange(longest, device=slot.device)  # [L]
    tokens = history.tokens[requests, :longest]  # [H, L]
    known = index < history.known[requests].unsqueeze(1)
    tokens = torch.where(known, tokens, torch.where(history.known[requests] > 0, tokens[:, 0], 0).unsqueeze(1))
    produced = known & (index >= table.prompt_length[requests].unsqueeze(1))
    occurrences = torch.zeros(len(requests), table.vocab_size, dtype=torch.int32, device=slot.device)  # [H, V]
    occurrences.scatter_add_(1, tokens, produced.int())

    path, below = [], []  # up the tree; a root is its own parent and counts among the known tokens already
    at = affected
    for _ in range(rows.max_depth):
        below.append(rows.depth[at] > 0)  # [A]
        path.append(torch.where(below[-1], rows.token[at], tokens[place, 0]))  # [A]
        at = rows.parent[at]
    ids = torch.cat([tokens[place], *(token.unsqueeze(1) for token in path)], dim=1)  # [A, K]
    count = occurrences.flatten()[place.unsqueeze(1) * table.vocab_size + ids]  # [A, K]
    for token, drafted in zip(path, below, strict=True):
        count += (ids == token.unsqueeze(1)) & drafted.unsqueeze(1)
    return ids, count


def _draw(logits: Tensor, slot: Tensor, position: Tensor, table: SamplingTable, traits: Traits) -> Draws:
    """Draw from logits as they are, by temperature and truncation."""
    if traits.noise:
        truncation = None
        if traits.truncation:
            truncation = Truncation(table.top_k[slot], table.top_p[slot], table.min_p[slot], traits.most_k)
        words = table.seed[slot], table.choice[slot], position
        token = perturbed_argmax(logits, table.temperature[slot], *words, truncation)
    else:
        token = greedy_argmax(logits)
    # Argmax prefers NaN to everything and +inf to the rest, so its own logit tells of both.
    return Draws(token, finite_at(logits, token))
