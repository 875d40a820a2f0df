"""What a step's results mean for a request: which token ends it, and how much of what it gained the draft model has read."""

from collections import Counter
from collections.abc import Sequence

from adaserve.request import RequestState
from adaserve.step import Drafted
from adaserve.tree import Source


def read_by_model(drafted: Drafted) -> Counter[int]:
    """How many accepted nodes of each request the draft model proposed; they come before those that look-up alone proposed."""
    nodes = zip(drafted.request, drafted.source, drafted.accepted, strict=True)
    return Counter(request for request, source, accepted in nodes if accepted and source != Source.NGRAM)


def first_stop(state: RequestState, tokens: Sequence[int]) -> int | None:
    """Which of the tokens just gained ends the request, if one does."""
    stop_ids = state.request.stop_ids
    if not stop_ids:
        return None
    least = state.request.sampling.min_tokens - state.produced  # tokens that may not end it
    return next((i for i, token in enumerate(tokens) if token in stop_ids and i >= least), None)
