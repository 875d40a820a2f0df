"""All that the engine and an executor say to each other: StepPlan down, CandidateTree and StepOutcome up."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from adaserve.request import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor  # the HTTP process reads these types without loading torch


@dataclass(frozen=True)
class Placement:
    """A request comes to a slot: everything the executor must know about it, once.

    `tokens` are all known tokens (prompt, and after a pre-emption the output too); `prompt_length` says where output begins.
    `cache_salt` is the tenant's: what was said under one salt helps no request with another, be it by pages or by look-up.
    """

    slot: int
    tokens: tuple[int, ...]
    prompt_length: int
    sampling: SamplingParams
    seed: int
    choice: int
    stop_ids: tuple[int, ...]
    cache_salt: str = ""


@dataclass(frozen=True)
class PageGrant:
    """Pages that a slot owns from now on; `first` is the index in the slot's page table of the first of them."""

    slot: int
    first: int
    pages: tuple[int, ...]


class Chunk(NamedTuple):
    """Known tokens [start, start + length) of a slot, to be computed in this step.

    `draws`: the chunk reaches the last known token, so the next token is drawn from its last row.
    A tuple, for every step makes one for each request, and a dataclass takes three times as long.
    """

    slot: int
    start: int
    length: int
    draws: bool = False


class Order(Enum):
    """Who comes first in the SLO phase of selection."""

    NEEDIEST = "neediest"
    EASIEST = "easiest"
    ATTAINABLE = "attainable"


@dataclass(frozen=True)
class Limits:
    """What a step may spend on trees.

    nodes: draft nodes over all requests: the budget B less roots and prompt-chunk rows.
    per_request: n_max, the most nodes that the SLO phase gives one request.
    depth: d, the deepest node; caps the need at d + 1.
    price: what 0, 1, ... `nodes` nodes cost, in tokens: the time that they add to the step over the time that a token is worth.
        Empty: nodes are free up to `nodes`.
    """

    nodes: int
    per_request: int
    depth: int
    order: Order = Order.NEEDIEST
    price: tuple[float, ...] = ()


@dataclass(frozen=True)
class StepPlan:
    """One iteration, decided by the scheduler; complete when built.

    released, placed, grants: bookkeeping that comes first, in this order.
    decoding: slots of the n requests that get a tree, in the order of `need`, `room` and of all [n, ...] tensors.
    need: tokens each must gain now to be on target, A_i = (l_i + t) / tau_i - o_i; 0 for requests without an SLO.
    room: deepest draft node that each may use (its remaining tokens less one).
    temperature: at which each draws.
    drafting: for each, the known tokens that the draft has yet to compute, the root last, before it speculates; None where it
        does not speculate in this step (root only).
    chunks: prompt rows that the target computes beside the trees.
    catch_up: known tokens that the draft model computes beside its speculation, or once the target's pass is under way: the
        chunks' own tokens, and what d = 0 periods or prefix hits left behind.
    depth, width: d and w of the beam; depth 0 is plain decoding.
    predicted: t, the step's predicted duration in seconds.
    coupled: whether a draft model ranks by the noise of the target's draws too; it matters at temperatures above 0 only.
    again: the next plan, if there is one, decodes these requests, or those of them that still have their slots, plainly and does
        nothing else, so an executor may compute it before it is made.
    """

    released: tuple[int, ...]
    placed: tuple[Placement, ...]
    grants: tuple[PageGrant, ...]
    decoding: tuple[int, ...]
    need: tuple[float, ...]
    room: tuple[int, ...]
    temperature: tuple[float, ...]
    drafting: tuple[Chunk | None, ...]
    chunks: tuple[Chunk, ...]
    catch_up: tuple[Chunk, ...]
    limits: Limits
    depth: int
    width: int
    predicted: float
    coupled: bool = False
    again: bool = False


@dataclass(frozen=True)
class StepShape:
    """What a step's duration depends on.

    rows: rows that the target's pass computes (roots, nodes, chunks, and on a GPU padding).
    context: paged tokens that the target's attention reads, summed over requests.
    draft_rows: rows of each pass of the draft model, in order.
    draft_context: paged tokens that the draft's attention reads, summed over requests and passes.
    prompt: rows of the target's pass that are a prompt's, of which only the last one's scores are needed.
    """

    rows: int
    context: int
    draft_rows: tuple[int, ...] = ()
    draft_context: int = 0
    prompt: int = 0


READY_LAG = 6
"""Known tokens that the draft may still have to compute when it speculates; behind by more, it catches up first."""


def draft_work(
    drafting: Sequence[Chunk | None], catch_up: Sequence[Chunk], depth: int, width: int
) -> tuple[tuple[int, ...], int]:
    """Rows of each pass of a draft model, and the paged tokens that its attention reads, for a step like this."""
    active = [chunk for chunk in drafting if chunk is not None] if depth else []
    first = sum([chunk.length for chunk in active]) + sum([chunk.length for chunk in catch_up])
    if not first:
        return (), 0
    passes = (first, *[len(active) * width] * (depth - 1)) if active else (first,)
    reach = sum([chunk.start + chunk.length for chunk in active])
    return passes, reach * len(passes) + sum([chunk.start + chunk.length for chunk in catch_up])


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probability and rank (1: likeliest) of a produced token, and the likeliest tokens, under the model's own logits."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Verdict:
    """What verification found, on the device.

    tokens  [n, D + 1] int64  tokens gained: the accepted path, then the extra token; rows are padded
    length  [n] int64         how many of them count, at least 1
    accepted [B] bool         which packed rows lie on the accepted path (roots included)
    """

    tokens: "Tensor"
    length: "Tensor"
    accepted: "Tensor"


@dataclass(frozen=True)
class Drafted:
    """The verified draft nodes of a step, flat, for learning and for metrics: one entry a node, parents first.

    request indexes StepPlan.decoding. `reached`: its parent was accepted, so its own acceptance was put to the test.
    """

    request: tuple[int, ...]
    depth: tuple[int, ...]
    source: tuple[int, ...]
    path_prob: tuple[float, ...]
    edge_prob: tuple[float, ...]
    reached: tuple[bool, ...]
    accepted: tuple[bool, ...]


@dataclass(frozen=True)
class PhaseTimes:
    """Seconds of each phase of one step."""

    schedule: float = 0.0
    speculate: float = 0.0
    select: float = 0.0
    verify: float = 0.0
    commit: float = 0.0

    @property
    def total(self) -> float:
        """The whole step's seconds."""
        return self.schedule + self.speculate + self.select + self.verify + self.commit

    def within(self, seconds: float) -> "PhaseTimes":
        """The same in a step that took so many seconds: what the host did while the device worked on took no time of its own."""
        beside = max(seconds - self.speculate - self.select - self.verify, 0.0)
        commit = min(self.commit, beside)
        return replace(self, schedule=min(self.schedule, beside - commit), commit=commit)


@dataclass(frozen=True)
class StepOutcome:
    """What a step brought: the only thing copied to the host.

    tokens: per decoding slot, in the plan's order, the tokens gained (at least one).
    first_tokens: per chunk that draws, in the plan's order of such chunks, its token.
    logprobs, first_logprobs: alongside, for requests that asked; otherwise empty tuples.
    failed: slots whose logits were not finite; their tokens mean nothing.
    """

    plan: StepPlan
    tokens: tuple[tuple[int, ...], ...]
    first_tokens: tuple[int, ...]
    logprobs: tuple[tuple[TokenLogprobs, ...], ...]
    first_logprobs: tuple[tuple[TokenLogprobs, ...], ...]
    drafted: Drafted
    failed: tuple[int, ...]
    shape: StepShape
    times: PhaseTimes

    @property
    def used_rows(self) -> int:
        """Rows that were of use: roots, verified nodes and prompt rows."""
        return len(self.tokens) + len(self.drafted.request) + sum(chunk.length for chunk in self.plan.chunks)
