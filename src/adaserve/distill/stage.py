"""Where many rows stand in their scripts at once, as tensors: what each has to take next, and what it may draw."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adaserve.distill.rows import Role, Script


class Stage:
    """Where every row stands in its script, as tensors [n]: the turn, and how many of its tokens have been played."""

    def __init__(self, scripts: Sequence[Script], device: torch.device) -> None:
        turns = max(len(script.turns) for script in scripts) + 1  # a last one in which nothing happens
        ends = list({turn.ends for script in scripts for turn in script.turns})

        def table(values: Callable[[Script], list[float]], fill: float, dtype: torch.dtype) -> Tensor:
            rows = [values(script) + [fill] * (turns - len(script.turns)) for script in scripts]
            return torch.tensor(rows, dtype=dtype, device=device)  # [n, turns]

        self._count = table(lambda s: [len(t.given) for t in s.turns], 0, torch.long)
        self._most = table(lambda s: [t.most for t in s.turns], 1 << 40, torch.long)
        self._least = table(lambda s: [t.least for t in s.turns], 0, torch.long)
        self._temperature = table(lambda s: [t.temperature for t in s.turns], 0.0, torch.float32)
        self._role = table(lambda s: [Role.ANSWER if t.answer else Role.GIVEN for t in s.turns], Role.PADDING, torch.uint8)
        self._ends_of = table(lambda s: [ends.index(t.ends) for t in s.turns], 0, torch.long)
        given = [token for script in scripts for turn in script.turns for token in turn.given]
        self._given = torch.tensor([*given, 0], dtype=torch.long, device=device)  # [all given tokens + 1]
        self._start = self._count.flatten().cumsum(0).view_as(self._count) - self._count  # [n, turns]
        last = max((token for stop in ends for token in stop), default=0)
        self._is_end = torch.zeros(len(ends), last + 2, dtype=torch.bool, device=device)  # [sets, ids]; the last: every other id
        for number, stop in enumerate(ends):
            self._is_end[number, list(stop)] = True
        delayed = {token for script in scripts for turn in script.turns if turn.least for token in turn.ends}
        self._delayed = torch.tensor(sorted(delayed), dtype=torch.long, device=device)  # [E]: ends that may come too early
        self._turn = torch.zeros(len(scripts), dtype=torch.long, device=device)  # [n]
        self._played = torch.zeros_like(self._turn)  # [n]
        self._skip_empty()

    def temperature(self) -> Tensor:
        """Of every row's turn.  # [n]"""
        return self._now(self._temperature)

    def forbid(self, logits: Tensor) -> Tensor:
        """Take the ends out of what can be drawn where their time has not come. logits [n, V] are changed in place."""
        if len(self._delayed):
            early = self._played < self._now(self._count) + self._now(self._least)  # [n]
            ends = self._is_end[self._now(self._ends_of)][:, self._delayed] & early[:, None]  # [n, E]
            logits[:, self._delayed] = logits[:, self._delayed].masked_fill(ends, -torch.inf)
        return logits

    def take(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Play one token of every row, the given one or the drawn one; returns tokens and roles [n]."""
        count = self._now(self._count)
        is_given = self._played < count
        place = (self._now(self._start) + self._played).clamp(max=len(self._given) - 1)
        role = self._now(self._role)
        over = self._turn == self._count.shape[1] - 1
        token = torch.where(is_given, self._given[place], drawn).masked_fill(role == Role.PADDING, 0)
        ended = ~is_given & self._is_end[self._now(self._ends_of), token.clamp(max=self._is_end.shape[1] - 1)]
        self._played += 1
        done = (ended | (self._played >= count + self._now(self._most))) & ~over
        role = torch.where(is_given & (role != Role.PADDING), int(Role.GIVEN), role)
        self._turn += done
        self._played.masked_fill_(done, 0)
        return token.int(), role

    def is_over(self) -> bool:
        """Whether all rows have come to the end of their scripts."""
        return bool((self._turn == self._count.shape[1] - 1).all())

    def _now(self, table: Tensor) -> Tensor:
        return table.gather(1, self._turn[:, None])[:, 0]

    def _skip_empty(self) -> None:
        """Refuse what cannot be played."""
        inner = self._count[:, :-1] + self._most[:, :-1]  # [n, turns - 1]
        if bool((inner == 0).any()) or bool((self._count[:, 0] == 0).any()):
            raise ValueError("a script must begin with a given token, and no turn may be empty")
