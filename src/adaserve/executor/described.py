"""Log-probabilities of what a step brought, for those requests that asked."""

from collections.abc import Mapping, Sequence

import numpy as np

from adaserve.executor.found import Found
from adaserve.executor.trace import Trace
from adaserve.runtime.logprobs import token_logprobs
from adaserve.runtime.transfer import upload
from adaserve.step import StepPlan, TokenLogprobs


def tree_logprobs(plan: StepPlan, found: Found, trace: Trace, asked: Mapping[int, int]) -> tuple[tuple[TokenLogprobs, ...], ...]:
    """Of the tokens that decoding requests gained, along their accepted paths; asked: slot -> alternatives."""
    described: list[tuple[TokenLogprobs, ...]] = []
    for i, slot in enumerate(plan.decoding):
        if slot not in asked:
            described.append(())
            continue
        path = np.flatnonzero(found.accepted.astype(bool) & (found.row == i))  # the accepted path, root first
        row = upload(path.tolist(), trace.logits.device)
        described.append(token_logprobs(trace.logits[row], trace.draws.token[row], asked[slot]))
    return tuple(described)


def chunk_logprobs(drawing: Sequence[int], trace: Trace, asked: Mapping[int, int]) -> tuple[tuple[TokenLogprobs, ...], ...]:
    """Of the first tokens of prompts; drawing: the slots of the chunks that drew, in the order of the trace."""
    rows = [slice(row, row + 1) for row in range(trace.tree.rows, trace.tree.rows + len(drawing))]
    return tuple(
        token_logprobs(trace.logits[row], trace.draws.token[row], asked[slot]) if slot in asked else ()
        for row, slot in zip(rows, drawing, strict=True)
    )
