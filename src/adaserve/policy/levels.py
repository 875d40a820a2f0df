"""A multi-level feedback queue with skip-join: FastServe (Wu et al., arXiv 2305.05920).

Requests whose length nobody knows are served in levels. Who has used up its level's quantum sinks to the next, whose quantum is
twice as long, so short answers overtake long ones. A long prompt joins a lower level at once ("skip-join"), for its first
iteration alone would use up the higher quanta. Who has waited too long is served as if it stood in the highest level.

FastServe counts seconds; here an iteration is the unit, so that a request's level is a pure function of its state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from adaserve.policy.discipline import Forecast
from adaserve.request import RequestState


@dataclass(frozen=True)
class SkipJoin:
    """Ranks requests by the level that they have sunk to, 0 being the highest.

    quantum: iterations that a request may have in level 0; each further level has twice as many.
    prompt_rows: prompt rows that count as one iteration.
    levels: how many there are; the last one has no end.
    patience: seconds without a token after which a request counts as one of level 0, for one iteration.
    """

    quantum: int
    prompt_rows: int
    levels: int = 6
    patience: float = 2.0

    def level(self, state: RequestState) -> float:
        first = -(-len(state.request.prompt) // self.prompt_rows)  # the first iteration, which is the prompt
        level, last, quantum = 0, self.levels - 1, self.quantum
        while quantum < first and level < last:  # skip-join
            level, quantum = level + 1, 2 * quantum
        produced = state.produced
        if produced:
            used = first + produced - 1
            while used >= quantum and level < last:  # demotion
                level, used, quantum = level + 1, used - quantum, 2 * quantum
        return level

    def rank(self, state: RequestState, now: float) -> float:
        since = state.request.arrived if state.last_token_at is None else state.last_token_at
        return 0 if now - since > self.patience else self.level(state)


@dataclass(frozen=True)
class LevelTurns:
    """The `batch` highest requests take part; a prompt only if no request that decodes stands in a higher level.

    So a long prompt that skipped levels does not hold up those above it, which prompts that run first and alone otherwise would.
    """

    ranking: SkipJoin
    batch: int

    def __call__(self, running: Sequence[RequestState], now: float, forecast: Forecast) -> Sequence[RequestState]:
        highest = running[: self.batch]
        decoding = [s for s in highest if s.is_decoding]
        if not decoding or len(decoding) == len(highest):
            return highest
        level = self.ranking.rank(decoding[0], now)
        prompts = [s for s in highest if not s.is_decoding and self.ranking.rank(s, now) <= level]
        return prompts or decoding
