"""A writer plays scripts with a target, and rows of its own text come out.

EngineWriter     here: through our engine, for any model and device that it serves
BatchWriter      batch_writer.py: through the training module, thousands of rows in lockstep; many times faster on GPUs
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from adaserve.distill.rows import Role, Rows, Script
from adaserve.request import SamplingParams

if TYPE_CHECKING:
    from adaserve.llm import LLM


class Writer(Protocol):
    """Plays scripts."""

    def write(self, scripts: Sequence[Script], length: int) -> Rows:
        """Write a row of at most `length` tokens for every script."""
        ...


class EngineWriter:
    """Plays scripts through the engine: the next turn of every row is one batch of requests."""

    def __init__(self, llm: "LLM", seed: int) -> None:
        self._llm = llm
        self._seed = seed

    def write(self, scripts: Sequence[Script], length: int) -> Rows:
        """See Writer."""
        tokens: list[list[int]] = [[] for _ in scripts]
        roles: list[list[int]] = [[] for _ in scripts]
        for turn in range(max(len(script.turns) for script in scripts)):
            open_rows = []
            for row, script in enumerate(scripts):
                if turn < len(script.turns) and len(tokens[row]) < length:
                    tokens[row] += script.turns[turn].given
                    roles[row] += [Role.GIVEN] * len(script.turns[turn].given)
                    if script.turns[turn].most and len(tokens[row]) < length:
                        open_rows.append(row)
            played = [scripts[row].turns[turn] for row in open_rows]
            params = [
                SamplingParams(
                    max_tokens=min(part.most, length - len(tokens[row])),
                    temperature=part.temperature,
                    stop_token_ids=tuple(sorted(part.ends)),
                    min_tokens=min(part.least, part.most, length - len(tokens[row])),
                    ignore_eos=True,
                    seed=(self._seed << 40) + (turn << 32) + row,
                )
                for row, part in zip(open_rows, played, strict=True)
            ]
            results = self._llm.generate([tokens[row] for row in open_rows], params) if open_rows else []
            for row, part, result in zip(open_rows, played, results, strict=True):
                drawn = result.outputs[0].token_ids
                tokens[row] += drawn
                roles[row] += [Role.ANSWER if part.answer else Role.GIVEN] * len(drawn)
        return Rows.of([(s.kind, t, r) for s, t, r in zip(scripts, tokens, roles, strict=True)], length)
