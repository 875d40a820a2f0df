"""What a step's results mean for a request: its news, which token ends it, and how much of it the draft model has read."""

from collections.abc import Sequence
from typing import NamedTuple

from adaserve.request import RequestState
from adaserve.step import Drafted, TokenLogprobs
from adaserve.tree import Source

NGRAM = int(Source.NGRAM)


class Progress(NamedTuple):
    """News of one request: the tokens it gained, and in `state.finish` whether it ended. A tuple, as a Chunk is."""

    state: RequestState
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


def drafted_and_read(drafted: Drafted, requests: int) -> tuple[list[int], list[int]]:
    """How many nodes of each request were verified, and how many accepted ones the draft model proposed.

    These come before those that look-up alone proposed.
    """
    count, read = [0] * requests, [0] * requests
    for request, source, accepted in zip(drafted.request, drafted.source, drafted.accepted, strict=True):
        count[request] += 1
        if accepted and source != NGRAM:
            read[request] += 1
    return count, read


def first_stop(state: RequestState, tokens: Sequence[int]) -> int | None:
    """Which of the tokens just gained ends the request, if one does."""
    stop_ids = state.request.stop_ids
    if not stop_ids:
        return None
    least = state.request.sampling.min_tokens - state.produced  # tokens that may not end it
    for i, token in enumerate(tokens):  # a plain loop: this is asked of every request in every step
        if token in stop_ids and i >= least:
            return i
    return None
