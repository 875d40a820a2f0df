"""What the drafter computes in a step before it speculates: for the requests that decode, and for those that are behind."""

import math
from collections.abc import Mapping, Sequence
from enum import Enum

from adaserve.request import RequestState
from adaserve.step import READY_LAG, Chunk


class Drafting(Enum):
    """What proposes trees: nothing, prompt look-up, a draft model whose own cache must be kept up to date, or both in one."""

    NONE = "none"
    LOOKUP = "lookup"
    MODEL = "model"
    BOTH = "both"

    @property
    def has_model(self) -> bool:
        """Whether a draft model takes part."""
        return self in (Drafting.MODEL, Drafting.BOTH)

    def nodes(self, depth: int, width: int) -> int:
        """Most nodes that are proposed to a request: look-up beside a model adds a chain to the beam's tree."""
        return depth * (width + 1 if self is Drafting.BOTH else width)

    def work(
        self,
        decoding: Sequence[RequestState],
        room: Sequence[int],
        chunks: Sequence[Chunk],
        running: Mapping[int, RequestState],
        rows: int,
        lost: frozenset[str],
    ) -> tuple[list[Chunk | None], list[Chunk]]:
        """Per decoding request what the drafter reads before it speculates, None where it does not; and the catch-up beside it.

        room: deepest node that each decoding request may use. chunks: what the target computes of prompts that the draft reads
        along. running: all requests by slot. rows: most rows of catch-up. lost: ids of those who come last in it.
        """
        if self is Drafting.NONE:
            return [None] * len(decoding), []
        if self is Drafting.LOOKUP:
            return [
                Chunk(slot_of(s), len(s.tokens) - 1, 1, draws=True) if most else None
                for s, most in zip(decoding, room, strict=True)
            ], []
        return _model_work(decoding, room, chunks, running, max(rows, READY_LAG), lost)


def _model_work(
    decoding: Sequence[RequestState],
    room: Sequence[int],
    chunks: Sequence[Chunk],
    running: Mapping[int, RequestState],
    left: int,
    lost: frozenset[str],
) -> tuple[list[Chunk | None], list[Chunk]]:
    drafting: list[Chunk | None] = []
    catch_up: list[Chunk] = []
    for chunk in chunks:  # the draft reads a prompt as the target does
        state = running[chunk.slot]
        length = min(left, chunk.start + chunk.length - state.draft_computed)
        if length > 0:
            catch_up.append(Chunk(chunk.slot, state.draft_computed, length))
            left -= length
    behind: list[RequestState] = []
    for state, most in zip(decoding, room, strict=True):
        lag = len(state.tokens) - state.draft_computed
        if most <= 0:
            drafting.append(None)
        elif lag <= READY_LAG:
            drafting.append(Chunk(slot_of(state), state.draft_computed, lag, draws=True))
        else:
            drafting.append(None)
            behind.append(state)
    behind.sort(key=lambda s: (s.request.id in lost, s.request.targets.tpot or math.inf))  # the strictest target first
    for state in behind:
        length = min(left, len(state.tokens) - 1 - state.draft_computed)
        if length > 0:
            catch_up.append(Chunk(slot_of(state), state.draft_computed, length))
            left -= length
    return drafting, catch_up


def slot_of(state: RequestState) -> int:
    """The slot of a running request."""
    assert state.slot is not None, "a running request has a slot"
    return state.slot
