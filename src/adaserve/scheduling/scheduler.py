"""The scheduler: turns queues into a StepPlan, and outcomes into progress. Owns every RequestState.

One rule of progress (house rule 2): for each model, computed tokens catch up with known tokens. A request whose target lags by
one token is decoding: that token is the root of its tree. Any other lag is made up in chunks, a prompt's or a recomputation's.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import replace

from adaserve.latency import LatencyModel
from adaserve.padding import Padding
from adaserve.pages import PagePool
from adaserve.policy.policy import Demand, Policy, RowShare, Scene
from adaserve.request import FinishReason, Request, RequestState
from adaserve.scheduling.chunks import chunks_of
from adaserve.scheduling.drafting import Drafting, slot_of
from adaserve.scheduling.gains import Progress, drafted_and_read, first_stop
from adaserve.scheduling.ledger import PageLedger
from adaserve.scheduling.need import need
from adaserve.scheduling.sizing import Sizing
from adaserve.step import Limits, PageGrant, Placement, StepOutcome, StepPlan, StepShape, TokenLogprobs

__all__ = ["Drafting", "Progress", "Scheduler"]


class Scheduler:
    """Decides each step from the queues, in the order that the policy's discipline gives.

    slots: most requests that run at once. drafting: who proposes trees. reuse_prefixes: whether requests share full pages.
    padding: how many rows the executor computes. runs_ahead: whether it makes use of a promise of what the next step is.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        latency: LatencyModel,
        pages: PagePool,
        slots: int,
        drafting: Drafting,
        reuse_prefixes: bool,
        padding: Padding,
        runs_ahead: bool = False,
    ) -> None:
        self._policy = policy
        self._latency = latency
        self._ledger = PageLedger(pages, reuse_prefixes)
        self._padding = padding
        self._sizing = Sizing(drafting, latency, padding)
        self._runs_ahead = runs_ahead
        self._promised = False  # by the last plan: that this one decodes plainly, and nothing else
        self._slots = list(range(slots))
        self._waiting = policy.discipline.queue(latency.baseline)
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

    def state(self, slot: int) -> RequestState:
        """The request that holds a slot, to be looked at and not changed; KeyError if nobody does."""
        return self._running[slot]

    def admit(self, requests: Iterable[Request], now: float) -> list[Progress]:
        """Queue new requests; those whom the policy finds hopeless beside all who are here are refused."""
        refused = []
        for request in requests:
            state = RequestState(request, list(request.prompt))
            if self._policy.hopeless is not None and self._policy.hopeless(request, self._everybody(now)):
                state.finish = FinishReason.REFUSED
                refused.append(Progress(state, ()))
            else:
                self._waiting.push(state)
        return refused

    def _everybody(self, now: float) -> Scene:
        """All who run or wait, as if they decoded."""
        return Scene(now, [*self._running.values(), *self._waiting], (), len(self._waiting), self._latency, self._padding, False)

    def cancel(self, request_ids: set[str]) -> list[Progress]:
        """End the requests named; everything they held is free at once. Unknown ids are ignored."""
        waiting = [s for s in self._waiting if s.request.id in request_ids]
        ended = waiting + [s for s in self._running.values() if s.request.id in request_ids]
        for state in waiting:
            self._waiting.drop(state)
        for state in ended:
            self._end(state, FinishReason.CANCELLED)
        return [Progress(state, ()) for state in ended]

    def plan(self, now: float) -> StepPlan | None:
        """Decide the next iteration; None when no request needs one."""
        line = self._line(now)
        grants = self._grow(line)
        promised, self._promised = self._promised and bool(line), False
        # In a promised step nobody is drafted for, and who has come meanwhile waits.
        placed, crowded = ([], False) if promised else self._place(line, grants, now)
        if placed:
            line = self._line(now)
        members = line if promised or not line else self._policy.discipline.turns(line, now, self._forecast)
        decoding: list[RequestState] = []
        backlog: list[RequestState] = []
        for state in members:
            (decoding if state.is_decoding else backlog).append(state)
        scene = Scene(now, decoding, backlog, len(self._waiting), self._latency, self._padding, crowded)
        share = self._policy.scheduling.share(Demand(len(decoding), sum(len(s.tokens) - s.computed for s in backlog), scene))
        again = self._repeats(share, decoding, backlog)
        if promised:
            share = replace(share, decode=True, depth=0)
        if not share.decode:
            decoding = []
        chunks = chunks_of(backlog, share.prompt_rows)
        if not decoding and not chunks:
            assert not line, f"the policy {self._policy.name} lets nobody run"
            return None
        size = self._sizing.size(share, decoding, chunks, self._running)
        released, self._released = tuple(self._released), []
        self._promised = again
        return StepPlan(
            released=released,
            placed=tuple(placed),
            grants=tuple(grants.values()),
            decoding=tuple([slot_of(s) for s in decoding]),
            need=tuple([0.0 if s.request.id in share.lost else need(s, now, size.predicted, share.pace) for s in decoding]),
            room=size.room,
            temperature=tuple([s.request.sampling.temperature for s in decoding]),
            drafting=size.drafting,
            chunks=tuple(chunks),
            catch_up=size.catch_up,
            limits=Limits(size.nodes, self._policy.per_request, size.depth, self._policy.order, size.price),
            depth=size.depth,
            width=share.width,
            predicted=size.predicted,
            coupled=self._policy.coupled,
            again=again,
        )

    def _repeats(self, share: RowShare, decoding: Sequence[RequestState], backlog: Sequence[RequestState]) -> bool:
        """Whether the step after the one that is planned can be promised: all decode plainly, and nobody waits for anything."""
        busy = share.depth or backlog or len(self._waiting) or len(decoding) < len(self._running)
        return self._runs_ahead and not busy and any(s.remaining > 1 for s in decoding)

    def record(self, outcome: StepOutcome, now: float) -> list[Progress]:
        """Take in what a step brought; `now` is when its tokens were committed."""
        plan = outcome.plan
        progress: list[Progress] = []
        failed = set(outcome.failed)
        drafted, read = drafted_and_read(outcome.drafted, len(plan.decoding))
        for chunk in plan.catch_up:
            self._running[chunk.slot].draft_computed = chunk.start + chunk.length
        draws = iter(zip(outcome.first_tokens, outcome.first_logprobs, strict=True))
        for chunk in plan.chunks:
            state = self._running[chunk.slot]
            state.computed = chunk.start + chunk.length
            if chunk.draws:
                token, logprobs = next(draws)
                progress.append(self._gain(state, (token,), logprobs, now, chunk.slot in failed))
        gained = zip(plan.decoding, plan.drafting, drafted, read, outcome.tokens, outcome.logprobs, strict=True)
        for slot, reads, nodes, proposed, tokens, logprobs in gained:
            state = self._running[slot]
            known, accepted = len(state.tokens), len(tokens) - 1
            state.computed = known + accepted
            if reads is not None and plan.depth:
                # Nodes of the last depth, and those that look-up alone proposed, were never fed to the draft model.
                state.draft_computed = known + (proposed if proposed < plan.depth else plan.depth - 1)
            state.steps += 1
            state.accepted += accepted
            state.drafted += nodes
            progress.append(self._gain(state, tokens, logprobs, now, slot in failed))
        self._ledger.note([item.state for item in progress if item.state.finish is None])
        return progress

    def publish(self) -> None:
        """Offer the pages that recorded steps filled to later requests; to be called while a device works."""
        self._ledger.publish()

    def usage(self) -> float:
        """Share of the KV pages in use, 0 to 1."""
        return self._ledger.usage

    def check(self) -> None:
        """Verify the page accounting; raises AssertionError where it is broken."""
        self._ledger.check(list(self._running.values()))

    def _line(self, now: float) -> list[RequestState]:
        """The running requests, the most important first; of equals the one admitted first."""
        line = list(self._running.values())
        ranking = self._policy.discipline.ranking
        if ranking is not None:
            line.sort(key=lambda s: ranking.rank(s, now))
        return line

    def _forecast(self, rows: int, context: int) -> float:
        return self._latency.predict(StepShape(rows, context))

    def _grow(self, line: list[RequestState]) -> dict[int, PageGrant]:
        """Give decoding requests the pages that this step may fill, by slot; pre-empt from the line's end when there are none."""
        grants: dict[int, PageGrant] = {}
        deepest = self._policy.scheduling.deepest
        for state in self._ledger.short(line, deepest + 1):  # few of them, in most steps
            if not state.is_decoding or self._ledger.holds(state, reach := _reach(state, deepest)):
                continue
            while state.slot is not None:
                grant = self._ledger.grow(state, reach)
                if grant is not None:
                    grants[grant.slot] = grant
                    break
                self._preempt(line.pop(), grants)
        return grants

    def _place(self, line: list[RequestState], grants: dict[int, PageGrant], now: float) -> tuple[list[Placement], bool]:
        """Move waiting requests to slots, in the queue's order, as long as their known tokens find pages.

        Where the policy ranks requests, less important ones at the line's end make room. Returns who was placed, and whether the
        next in the queue's order found no slot or no pages.
        """
        ranking, deepest = self._policy.discipline.ranking, self._policy.scheduling.deepest
        placed: list[Placement] = []
        while (state := self._waiting.first(now)) is not None:
            if not self._slots or not self._ledger.open(state, _reach(state, deepest), reserve=len(self._running)):
                if ranking is None or not line or ranking.rank(line[-1], now) <= ranking.rank(state, now):
                    return placed, True
                self._preempt(line.pop(), grants)
                continue
            self._waiting.take(state)
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
                    cache_salt=request.cache_salt,
                )
            )
            grants[slot] = PageGrant(slot, 0, tuple(state.pages))
        return placed, False

    def _gain(
        self, state: RequestState, tokens: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...], now: float, failed: bool
    ) -> Progress:
        """Append the tokens up to the one that ends the request, if one does."""
        if failed:
            self._end(state, FinishReason.ERROR)
            return Progress(state, ())
        most = state.remaining
        kept = tokens[:most]
        stop = first_stop(state, kept)
        if stop is not None:
            kept = kept[: stop + 1]
        state.tokens.extend(kept)
        self._waiting.served(state, len(kept))
        if state.decoding_since is None:
            state.decoding_since = now
        elif state.last_token_at is not None:
            state.longest_gap = max(state.longest_gap, now - state.last_token_at)
        state.last_token_at = now
        if stop is not None:
            self._end(state, FinishReason.STOP)
        elif len(kept) == most:
            self._end(state, FinishReason.LENGTH)
        return Progress(state, kept, logprobs[: len(kept)])

    def _preempt(self, state: RequestState, grants: dict[int, PageGrant]) -> None:
        """Take everything from a running request, what this step granted it too, and put it back into the queue.

        It recomputes what the page cache no longer holds.
        """
        grants.pop(slot_of(state), None)
        self._leave(state)
        state.preemptions += 1
        self._waiting.put_back(state)

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


def _reach(state: RequestState, deepest: int) -> int:
    """How many tokens a request may have after a step: its known ones, the deepest path that may be accepted, and one more.

    The last of them is the next step's root, whose place the draft may fill before that step is planned.
    A placed request needs as many, for a cached prefix may leave it nothing to compute but the root.
    """
    return len(state.tokens) + 1 + max(0, min(deepest, state.remaining - 1))
