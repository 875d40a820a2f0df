"""The scheduler: turns queues into a StepPlan, and outcomes into progress. Owns every RequestState.

One rule of progress (house rule 2): for each model, computed tokens catch up with known tokens. A request whose target lags by
one token is decoding: that token is the root of its tree. Any other lag is made up in chunks, a prompt's or a recomputation's.
"""

import heapq
import math
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from adaserve.latency import LatencyModel
from adaserve.pages import PagePool
from adaserve.policy.policy import Demand, Policy, Share
from adaserve.request import FinishReason, Request, RequestState
from adaserve.scheduling.ledger import PageLedger
from adaserve.scheduling.need import need
from adaserve.step import Chunk, Limits, PageGrant, Placement, StepOutcome, StepPlan, StepShape, TokenLogprobs, draft_work

READY_LAG = 6
"""Known tokens that the draft may still have to compute when it speculates; behind by more, it catches up first."""


class Drafting(Enum):
    """What proposes trees: nothing, prompt look-up, or a draft model whose own cache must be kept up to date."""

    NONE = "none"
    LOOKUP = "lookup"
    MODEL = "model"


@dataclass(frozen=True)
class Progress:
    """News of one request: the tokens it gained, and in `state.finish` whether it ended."""

    state: RequestState
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


class Scheduler:
    """Decides each step from the queues; first come, first served.

    slots: most requests that run at once. drafting: who proposes trees. reuse_prefixes: whether requests share full pages.
    """

    def __init__(
        self, *, policy: Policy, latency: LatencyModel, pages: PagePool, slots: int, drafting: Drafting, reuse_prefixes: bool
    ) -> None:
        self._policy = policy
        self._latency = latency
        self._ledger = PageLedger(pages, reuse_prefixes)
        self._drafting = drafting
        self._slots = list(range(slots))
        self._waiting: deque[RequestState] = deque()
        self._running: dict[int, RequestState] = {}  # by slot, in order of admission
        self._released: list[int] = []

    @property
    def running(self) -> int:
        """How many requests hold a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many requests wait for one."""
        return len(self._waiting)

    def admit(self, requests: Iterable[Request]) -> None:
        """Queue new requests behind the waiting ones."""
        self._waiting.extend(RequestState(request, list(request.prompt)) for request in requests)

    def cancel(self, request_ids: set[str]) -> list[Progress]:
        """End the requests named; everything they held is free at once. Unknown ids are ignored."""
        ended = [s for s in (*self._waiting, *self._running.values()) if s.request.id in request_ids]
        for state in ended:
            self._end(state, FinishReason.CANCELLED)
        self._waiting = deque(s for s in self._waiting if s.finish is None)
        return [Progress(state, ()) for state in ended]

    def plan(self, now: float) -> StepPlan | None:
        """Decide the next iteration; None when no request needs one."""
        grants = self._grow()
        placed, fresh = self._place()
        grants += fresh
        decoding = [s for s in self._running.values() if s.is_decoding]
        backlog = [s for s in self._running.values() if not s.is_decoding]
        share = self._policy.scheduling.share(Demand(len(decoding), sum(len(s.tokens) - s.computed for s in backlog)))
        if not share.decode:
            decoding = []
        chunks = _chunks(backlog, share.prompt_rows)
        if not decoding and not chunks:
            return None
        nodes = max(0, share.budget - len(decoding) - sum(c.length for c in chunks))
        room = tuple(min(s.remaining - 1, share.depth) for s in decoding)
        drafting, catch_up = self._draft_work(decoding, room, chunks, share)
        # Nobody drafts deeper than anybody can use, nor for a budget that prompts have spent.
        depth = max((most for chunk, most in zip(drafting, room, strict=True) if chunk is not None), default=0) if nodes else 0
        drafts = sum(chunk is not None for chunk in drafting)
        shape = self._shape(decoding, chunks, drafting, catch_up, depth, share.width, min(nodes, drafts * depth * share.width))
        predicted = self._latency.predict(shape)
        released, self._released = tuple(self._released), []
        return StepPlan(
            released=released,
            placed=tuple(placed),
            grants=tuple(grants),
            decoding=tuple(_slot(s) for s in decoding),
            need=tuple(need(s, now, predicted) for s in decoding),
            room=room,
            drafting=tuple(drafting),
            chunks=tuple(chunks),
            catch_up=tuple(catch_up),
            limits=Limits(nodes, self._policy.per_request, depth, self._policy.order),
            depth=depth,
            width=share.width,
            predicted=predicted,
        )

    def record(self, outcome: StepOutcome, now: float) -> list[Progress]:
        """Take in what a step brought; `now` is when its tokens were committed."""
        plan = outcome.plan
        progress: list[Progress] = []
        failed = set(outcome.failed)
        drafted = Counter(outcome.drafted.request)
        for chunk in plan.catch_up:
            self._running[chunk.slot].draft_computed = chunk.start + chunk.length
        draws = iter(zip(outcome.first_tokens, outcome.first_logprobs, strict=True))
        for chunk in plan.chunks:
            state = self._running[chunk.slot]
            state.computed = chunk.start + chunk.length
            if chunk.draws:
                token, logprobs = next(draws)
                progress.append(self._gain(state, (token,), logprobs, now, chunk.slot in failed))
        for i, slot in enumerate(plan.decoding):
            state, tokens = self._running[slot], outcome.tokens[i]
            known, accepted = len(state.tokens), len(tokens) - 1
            state.computed = known + accepted
            if plan.drafting[i] is not None and plan.depth:
                # Nodes of the last depth were proposed but never fed to the draft.
                state.draft_computed = known + min(accepted, plan.depth - 1)
            state.steps += 1
            state.accepted += accepted
            state.drafted += drafted[i]
            progress.append(self._gain(state, tokens, outcome.logprobs[i], now, slot in failed))
        for item in progress:
            if item.state.finish is None:
                self._ledger.publish(item.state)
        return progress

    def usage(self) -> float:
        """Share of the KV pages in use, 0 to 1."""
        return self._ledger.usage

    def check(self) -> None:
        """Verify the page accounting; raises AssertionError where it is broken."""
        self._ledger.check(list(self._running.values()))

    def _grow(self) -> list[PageGrant]:
        """Give decoding requests the pages that this step may fill; pre-empt the youngest when there are none left."""
        grants = []
        for state in list(self._running.values()):
            if not state.is_decoding or state.slot is None:
                continue
            reach = self._reach(state)
            while state.slot is not None:
                grant = self._ledger.grow(state, reach)
                if grant is not None:
                    grants += [grant] if grant.pages else []
                    break
                self._preempt(next(reversed(self._running.values())))
        return [g for g in grants if g.slot in self._running]

    def _reach(self, state: RequestState) -> int:
        """How many tokens a request may have after a step: its known ones, the next, and the deepest path that may be accepted.

        A placed request needs as many, for a cached prefix may leave it nothing to compute but the root.
        """
        return len(state.tokens) + max(1, min(self._policy.scheduling.deepest, state.remaining - 1))

    def _place(self) -> tuple[list[Placement], list[PageGrant]]:
        """Move waiting requests to free slots, in order of arrival, as long as their known tokens find pages."""
        placed, grants = [], []
        while self._waiting and self._slots:
            state = self._waiting[0]
            if not self._ledger.open(state, self._reach(state), reserve=len(self._running)):
                break
            self._waiting.popleft()
            slot = heapq.heappop(self._slots)
            state.slot = slot
            self._running[slot] = state
            request = state.request
            placed.append(
                Placement(
                    slot=slot,
                    tokens=tuple(state.tokens),
                    prompt_length=len(request.prompt),
                    sampling=request.sampling,
                    seed=request.seed,
                    choice=request.choice,
                    stop_ids=request.stop_ids,
                )
            )
            grants.append(PageGrant(slot, 0, tuple(state.pages)))
        return placed, grants

    def _draft_work(
        self, decoding: list[RequestState], room: tuple[int, ...], chunks: list[Chunk], share: Share
    ) -> tuple[list[Chunk | None], list[Chunk]]:
        """What the drafter computes before it can speculate: per decoding request, and for those that are behind."""
        if not share.depth or self._drafting is Drafting.NONE:
            return [None] * len(decoding), []
        if self._drafting is Drafting.LOOKUP:
            return [
                Chunk(_slot(s), len(s.tokens) - 1, 1, draws=True) if most else None
                for s, most in zip(decoding, room, strict=True)
            ], []
        drafting: list[Chunk | None] = []
        catch_up: list[Chunk] = []
        left = max(share.prompt_rows, READY_LAG)
        for chunk in chunks:  # the draft reads a prompt as the target does
            state = self._running[chunk.slot]
            length = min(left, chunk.start + chunk.length - state.draft_computed)
            if length > 0:
                catch_up.append(Chunk(chunk.slot, state.draft_computed, length))
                left -= length
        behind: list[RequestState] = []
        for state, most in zip(decoding, room, strict=True):
            lag = len(state.tokens) - state.draft_computed
            ready = most > 0 and lag <= READY_LAG
            drafting.append(Chunk(_slot(state), state.draft_computed, lag, draws=True) if ready else None)
            if most > 0 and not ready:
                behind.append(state)
        for state in sorted(behind, key=lambda s: s.request.targets.tpot or math.inf):  # the strictest target first
            length = min(left, len(state.tokens) - 1 - state.draft_computed)
            if length > 0:
                catch_up.append(Chunk(_slot(state), state.draft_computed, length))
                left -= length
        return drafting, catch_up

    def _shape(
        self,
        decoding: list[RequestState],
        chunks: list[Chunk],
        drafting: list[Chunk | None],
        catch_up: list[Chunk],
        depth: int,
        width: int,
        nodes: int,
    ) -> StepShape:
        """What the step will look like if every node that fits is chosen: the basis of the predicted duration t."""
        context = sum(len(s.tokens) for s in decoding) + sum(c.start + c.length for c in chunks)
        rows = len(decoding) + nodes + sum(c.length for c in chunks)
        if self._drafting is not Drafting.MODEL:
            return StepShape(rows, context)
        return StepShape(rows, context, *draft_work(drafting, catch_up, depth, width))

    def _gain(
        self, state: RequestState, tokens: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...], now: float, failed: bool
    ) -> Progress:
        """Append the tokens up to the one that ends the request, if one does."""
        if failed:
            self._end(state, FinishReason.ERROR)
            return Progress(state, ())
        kept = tokens[: state.remaining]
        stop = next((i for i, t in enumerate(kept) if self._stops(state, t, state.produced + i + 1)), None)
        if stop is not None:
            kept = kept[: stop + 1]
        state.tokens.extend(kept)
        if state.decoding_since is None:
            state.decoding_since = now
        elif state.last_token_at is not None:
            state.longest_gap = max(state.longest_gap, now - state.last_token_at)
        state.last_token_at = now
        if stop is not None:
            self._end(state, FinishReason.STOP)
        elif state.remaining == 0:
            self._end(state, FinishReason.LENGTH)
        return Progress(state, kept, logprobs[: len(kept)])

    @staticmethod
    def _stops(state: RequestState, token: int, produced: int) -> bool:
        return token in state.request.stop_ids and produced > state.request.sampling.min_tokens

    def _preempt(self, state: RequestState) -> None:
        """Take everything from a running request and queue it first; it recomputes what the page cache no longer holds."""
        self._leave(state)
        state.preemptions += 1
        self._waiting.appendleft(state)

    def _end(self, state: RequestState, reason: FinishReason) -> None:
        state.finish = reason
        self._leave(state)

    def _leave(self, state: RequestState) -> None:
        """Give back the slot and the pages. What a failed request computed is not fit for reuse."""
        if state.slot is None:
            return
        self._ledger.close(state, publish=state.finish is not FinishReason.ERROR)
        del self._running[state.slot]
        self._released.append(state.slot)
        heapq.heappush(self._slots, state.slot)
        state.slot = None
        state.computed = state.draft_computed = 0


def _slot(state: RequestState) -> int:
    assert state.slot is not None, "a running request has a slot"
    return state.slot


def _chunks(backlog: list[RequestState], rows: int) -> list[Chunk]:
    """Share out prompt rows in order of admission; the chunk that reaches the last known token draws."""
    chunks = []
    for state in backlog:
        length = min(rows, len(state.tokens) - state.computed)
        if length <= 0:
            break
        chunks.append(Chunk(_slot(state), state.computed, length, draws=state.computed + length == len(state.tokens)))
        rows -= length
    return chunks
