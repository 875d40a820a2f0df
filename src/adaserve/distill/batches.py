"""Which rows a training step reads, and what counts in them."""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from adaserve.distill.recipe import Recipe
from adaserve.distill.rows import Role, Rows


@dataclass(frozen=True)
class Batch:
    """token [n, T]; at [n, T]: positions that count; weight [m] of each; tokens: how many are no padding."""

    token: Tensor
    at: Tensor
    weight: Tensor
    tokens: Tensor


class Batches:
    """Rows in fixed groups of about micro_tokens, in an order that is shuffled anew each epoch.

    Fixed, so that the target's states can be remembered by number. Rows of like length stand together.
    """

    def __init__(self, rows: Rows, recipe: Recipe, device: torch.device) -> None:
        size = (rows.role != Role.PADDING).sum(1).tolist()  # [rows]
        shuffled = list(range(len(rows)))
        random.Random(recipe.seed).shuffle(shuffled)
        ordered = sorted(shuffled, key=lambda row: -(size[row] // 64))
        self._groups: list[list[int]] = []
        lengths: list[int] = []
        for row in ordered:
            longest = max(lengths[-1], size[row]) if lengths else 0
            if not self._groups or (len(self._groups[-1]) + 1) * longest > recipe.micro_tokens:
                self._groups.append([])
                lengths.append(0)
            self._groups[-1].append(row)
            lengths[-1] = max(lengths[-1], size[row])
        on_device = Rows(rows.token.to(device), rows.role.to(device), rows.kind)
        self._rows, self._lengths, self._recipe, self._device = on_device, lengths, recipe, device

    def __getitem__(self, number: int) -> Batch:
        rows = self._rows.take(self._groups[number])
        token = rows.token[:, : self._lengths[number]].long()  # [n, T]
        role = rows.role[:, : self._lengths[number]]  # [n, T]
        weight = torch.zeros(role.shape, device=self._device)  # [n, T]: of the prediction made *at* a position, the next token's
        weight[:, :-1] = (role[:, 1:] == Role.ANSWER).float() + (role[:, 1:] == Role.GIVEN).float() * self._recipe.given
        at = weight > 0
        return Batch(token, at, weight[at], (role != Role.PADDING).sum())

    def order(self, processes: int, steps: int) -> Iterator[list[int]]:
        """Groups of every step, from the given step on; every process has rows of its own."""
        each = math.ceil(self._recipe.batch_tokens / (self._recipe.micro_tokens * processes))
        epoch = 0
        waiting: list[int] = []
        for step in itertools.count():
            while len(waiting) < each:
                fresh = list(range(len(self._groups)))
                random.Random(f"{self._recipe.seed} {epoch}").shuffle(fresh)
                waiting, epoch = waiting + fresh, epoch + 1
            taken, waiting = waiting[:each], waiting[each:]
            if step >= steps:
                yield taken
