"""The draw: one token for every row of the target's pass, from the row's processed distribution.

A row is a root, a draft node or the last row of a prompt chunk; all are drawn alike. What depends on earlier tokens sees the
row's own path: the request's known tokens and, for a draft node, its ancestors and itself. So the token drawn at a node is the
one that plain decoding would draw there, and it does not matter which tree or batch the node stands in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adaserve.kernels.gumbel import greedy_argmax, perturbed_argmax
from adaserve.runtime import processors
from adaserve.runtime.table import SamplingTable
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
    slots                the slots that occur, known to the host
    """

    slot: Tensor
    position: Tensor
    token: Tensor
    parent: Tensor
    depth: Tensor
    max_depth: int
    slots: tuple[int, ...]

    @staticmethod
    def of(
        tree: DraftTree, decoding: tuple[int, ...], finishing: tuple[int, ...], known: Tensor, max_depth: int
    ) -> "DrawRows":
        """Describe the rows of a tree, followed by one row for each prompt chunk that draws.

        decoding: slots of the tree's n requests; finishing: slots of the chunks; known [slots]: how many tokens of each slot
        are known, the root or the chunk's last token included.
        """
        device = tree.token.device
        slots = decoding + finishing
        slot_of = torch.tensor(slots, dtype=torch.int64, device=device)  # [n + C]
        chunk = slot_of[len(decoding) :]  # [C]
        # Padding rows belong to request n, which does not exist; some other slot's parameters serve for their idle draws.
        slot = torch.cat([slot_of[tree.row.clamp(max=len(slots) - 1)], chunk])  # [R]
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
            slots=slots,
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
    traits = table.traits(rows.slots)
    if not traits.changes_logits:
        return _draw(logits, rows.slot, rows.position, table, traits.noise)
    # Only rows of requests that ask are processed, where finding them costs no synchronisation; elsewhere all rows are, with
    # parameters that change nothing for the others.
    affected = torch.arange(len(rows.slot), device=logits.device) if logits.is_cuda else table.changes[rows.slot].nonzero()[:, 0]
    processed = process(logits, affected, rows, table, history)
    part = _draw(processed, rows.slot[affected], rows.position[affected], table, traits.noise)
    if len(affected) == len(rows.slot):
        return part
    plain = _draw(logits, rows.slot, rows.position, table, traits.noise)
    return Draws(plain.token.index_copy(0, affected, part.token), plain.finite.index_copy(0, affected, part.finite))


def process(logits: Tensor, affected: Tensor, rows: DrawRows, table: SamplingTable, history: History) -> Tensor:
    """Return the processed logits of the affected rows, [len(affected), V] float32 or float64; see processors.py for the order."""
    traits = table.traits(rows.slots)
    slot, position = rows.slot[affected], rows.position[affected]  # [A]
    work = logits[affected]
    if work.dtype not in (torch.float32, torch.float64):
        work = work.float()
    if traits.bias:
        work = processors.add_bias(work, table.bias.ids[slot], table.bias.numbers[slot])
    if traits.history:
        seen, count = path_counts(affected, rows, table, history)
        work = processors.penalise(
            work, seen, count, table.repetition[slot], table.frequency[slot], table.presence[slot]
        )
    if traits.minimum:
        work = processors.forbid(work, table.stops.ids[slot], position < table.shortest[slot])
    if traits.truncation:
        work = processors.truncate(
            work, table.temperature[slot], table.top_k[slot], table.top_p[slot], table.min_p[slot], traits.most_k
        )
    return work


def path_counts(affected: Tensor, rows: DrawRows, table: SamplingTable, history: History) -> tuple[Tensor, Tensor]:
    """Count what each affected row can look back on: seen [A, V] bool in prompt or output, count [A, V] int32 in the output."""
    slot = rows.slot[affected]  # [A]
    place = torch.arange(history.tokens.shape[1], device=slot.device)  # [L]
    known = place < history.known[slot].unsqueeze(1)  # [A, L]
    produced = known & (place >= table.prompt_length[slot].unsqueeze(1))
    tokens = torch.where(known, history.tokens[slot], 0)
    total = torch.zeros(len(slot), table.vocab_size, dtype=torch.int32, device=slot.device)  # [A, V]
    count = total.scatter_add(1, tokens, produced.int())
    total.scatter_add_(1, tokens, known.int())
    at = affected
    for _ in range(rows.max_depth):  # up the tree; a root is its own parent and counts among the known tokens already
        token, drafted = rows.token[at].unsqueeze(1), (rows.depth[at] > 0).int().unsqueeze(1)  # [A, 1]
        count.scatter_add_(1, token, drafted)
        total.scatter_add_(1, token, drafted)
        at = rows.parent[at]
    return total > 0, count


def _draw(logits: Tensor, slot: Tensor, position: Tensor, table: SamplingTable, noise: bool) -> Draws:
    """Draw from logits as they are."""
    if noise:
        token = perturbed_argmax(logits, table.temperature[slot], table.seed[slot], table.choice[slot], position)
    else:
        token = greedy_argmax(logits)
    # Argmax prefers NaN to everything and +inf to the rest, so its own logit tells of both.
    return Draws(token, logits.gather(1, token.unsqueeze(1))[:, 0].isfinite())
