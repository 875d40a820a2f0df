"""Prompt rows shared out among the requests whose known tokens are not all computed."""

from collections.abc import Sequence

from adaserve.request import RequestState
from adaserve.scheduling.drafting import slot_of
from adaserve.step import Chunk


def chunks_of(backlog: Sequence[RequestState], rows: int) -> list[Chunk]:
    """Share out prompt rows in the order given; the chunk that reaches the last known token draws."""
    chunks = []
    for state in backlog:
        length = min(rows, len(state.tokens) - state.computed)
        if length <= 0:
            break
        chunks.append(Chunk(slot_of(state), state.computed, length, draws=state.computed + length == len(state.tokens)))
        rows -= length
    return chunks
