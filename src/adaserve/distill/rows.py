"""What a draft learns from: rows of tokens, and the scripts by which a target writes them.

A row is a sequence of turns. Each turn begins with given tokens and goes on with tokens of the target's own:

    turn      │ <user> Explain │ how bread rises? <end> │ <assistant> │ Bread rises because ... <end> │ <user> ...
    role      │ GIVEN          │ GIVEN                  │ GIVEN       │ ANSWER                        │ GIVEN
    drawn     │                │ at temperature 0.8     │             │ at temperature 0              │

The target writes the questions too, so a model needs no corpus to be distilled: only words to begin with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class Role(IntEnum):
    """What a token of a row is. A draft will have to propose answers; it reads what is given."""

    PADDING = 0
    GIVEN = 1
    ANSWER = 2


@dataclass(frozen=True)
class Turn:
    """Tokens that are given, then at most `most` drawn ones at `temperature`; after one of `ends` the turn is over.

    answer: whether the drawn ones are what a draft will have to propose. least: none of `ends` is drawn before so many tokens.
    """

    given: tuple[int, ...]
    most: int
    temperature: float
    ends: frozenset[int]
    answer: bool
    least: int = 0


@dataclass(frozen=True)
class Script:
    """The turns of a row, written until the row is full. `kind` names the class that it resembles."""

    kind: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Rows:
    """Rows of equal length, padded on the right, where attention from the left never looks.

    token [n, T] int32, role [n, T] uint8 (a Role), kind: of every row.
    """

    token: Tensor
    role: Tensor
    kind: tuple[str, ...]

    def __len__(self) -> int:
        return self.token.shape[0]

    @property
    def tokens(self) -> int:
        """How many tokens there are, padding left out."""
        return int((self.role != Role.PADDING).sum())

    def take(self, index: Sequence[int]) -> "Rows":
        """Some of the rows, in the order of `index`."""
        at = torch.tensor(index, dtype=torch.long)
        return Rows(self.token[at], self.role[at], tuple(self.kind[i] for i in index))

    @staticmethod
    def of(sequences: Sequence[tuple[str, Sequence[int], Sequence[int]]], length: int) -> "Rows":
        """Make rows of (kind, tokens, roles), cut or padded to `length`."""
        token = torch.zeros(len(sequences), length, dtype=torch.int32)  # [n, T]
        role = torch.zeros(len(sequences), length, dtype=torch.uint8)  # [n, T]
        for row, (_, tokens, roles) in enumerate(sequences):
            size = min(length, len(tokens))
            token[row, :size] = torch.tensor(tokens[:size], dtype=torch.int32)
            role[row, :size] = torch.tensor(roles[:size], dtype=torch.uint8)
        return Rows(token, role, tuple(kind for kind, _, _ in sequences))

    @staticmethod
    def join(parts: Sequence["Rows"]) -> "Rows":
        """Stack rows; shorter ones are padded to the longest."""
        length = max(part.token.shape[1] for part in parts)

        def wide(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x, (0, length - x.shape[1]))

        token, role = torch.cat([wide(part.token) for part in parts]), torch.cat([wide(part.role) for part in parts])
        return Rows(token, role, tuple(kind for part in parts for kind in part.kind))
