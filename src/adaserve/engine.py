"""The engine: `Engine.step` is the loop's body and reads like the paper: speculate, select, verify, commit."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adaserve.clock import Clock
from adaserve.executor.executor import Executor
from adaserve.inbox import Inbox
from adaserve.latency import LatencyModel
from adaserve.metrics import RequestResult
from adaserve.policy.policy import Policy
from adaserve.request import FinishReason, Request
from adaserve.scheduling.scheduler import Progress, Scheduler
from adaserve.step import StepOutcome, StepPlan, TokenLogprobs, Verdict

if TYPE_CHECKING:
    from torch import Tensor

News = list[tuple[Progress, FinishReason | None]]
"""Progress, and why it was the last if it was."""


@dataclass(frozen=True)
class Update:
    """News of one request: tokens it gained and, with the last of them, why it ended and how it fared."""

    id: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish: FinishReason | None
    result: RequestResult | None


@dataclass(frozen=True)
class EngineStats:
    """The engine's state after a step: queue lengths, KV usage (0 to 1), verification budget and the rows used of it."""

    running: int
    waiting: int
    kv_usage: float
    budget_rows: int
    used_rows: int
    step_time_error: float


@dataclass(frozen=True)
class StepReport:
    """What one step brought: news of requests, the outcome itself (None when requests only ended) and the stats."""

    updates: tuple[Update, ...]
    outcome: StepOutcome | None
    slo_selected: tuple[int, ...]
    stats: EngineStats


@dataclass(frozen=True)
class Flight:
    """A step whose work for the device is enqueued; on a CPU it is done.

    slo [n]: nodes that the SLO phase chose for each. started: when its planning began. scheduling: seconds of the host's
    planning, and of learning from the step before.
    """

    plan: StepPlan
    verdict: Verdict
    slo: "Tensor"
    started: float
    scheduling: float


class Engine:
    """Runs requests to their end, a step at a time. `add`, `cancel` and `wait` are thread-safe; `step` belongs to one thread.

    Where a device works while the host does something else, the next step is begun before the last one's news is told:

        host    | commit, record | plan, enqueue | tell | ... commit waits ... | record | plan, enqueue | tell |
        device  |    (drafts)    |               verify                        | (drafts) ...
    """

    def __init__(
        self, *, scheduler: Scheduler, policy: Policy, executor: Executor, latency: LatencyModel, clock: Clock, baseline: float
    ) -> None:
        self._scheduler = scheduler
        self._policy = policy
        self._executor = executor
        self._latency = latency
        self._clock = clock
        self._baseline = baseline
        self._inbox = Inbox()
        self._flight: Flight | None = None  # the next step, if it was begun
        self._ended: list[Progress] = []  # by mail, which the next report tells before what its step brought
        self._broken: Exception | None = None  # why the next step could not be begun
        self._last: StepOutcome | None = None  # of the last step, which nobody has learned from yet

    @property
    def clock(self) -> Clock:
        """The clock that `Request.arrived` must be read from."""
        return self._clock

    def add(self, request: Request) -> None:
        """Hand in a validated request."""
        self._inbox.add(request)

    def cancel(self, request_id: str) -> None:
        """End a request; its final update has FinishReason.CANCELLED. Unknown ids are ignored."""
        self._inbox.cancel(request_id)

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for mail; whether there is any."""
        return self._inbox.wait(timeout)

    def close(self) -> None:
        """Let go of what the executor captured; no step comes after this."""
        self._executor.close()

    def check(self) -> None:
        """Verify the page accounting, for tests; raises AssertionError where it is broken."""
        self._scheduler.check()

    def step(self) -> StepReport | None:
        """One iteration: speculate, select, verify, commit; prompt chunks ride along with verification. None when idle.

        On a device that works meanwhile the first three were done by the call before, and are done here for the next one.
        """
        if self._broken is not None:
            raise self._broken
        flight = self._flight or self._begin()
        self._flight = None
        ended, self._ended = self._ended, []
        if flight is None:
            return self._report(_news(ended), None, (), self._stats(None), self._clock.now()) if ended else None
        outcome = self._executor.commit(flight.plan, flight.verdict)  # keep accepted KV; tokens reach the host here
        now = self._clock.now()
        progress = self._scheduler.record(outcome, now)
        recorded = self._clock.now()
        times = replace(outcome.times, schedule=flight.scheduling + recorded - now)
        outcome = replace(outcome, times=times.within(recorded - flight.started))
        self._last = outcome
        news, stats = _news(ended + progress), self._stats(outcome)
        slo_selected = tuple(flight.slo.tolist()[: len(flight.plan.decoding)])
        if self._executor.runs_ahead:
            try:
                self._flight = self._begin()
            except Exception as error:
                self._broken = error  # raised by the next call: what this step brought is not lost
        return self._report(news, outcome, slo_selected, stats, now)

    def _begin(self) -> Flight | None:
        """Take in the mail and begin a step, if there is one to make."""
        started = self._clock.now()
        mail = self._inbox.take()
        self._ended += self._scheduler.admit(mail.requests, started)
        if mail.cancelled:
            self._ended += self._scheduler.cancel(set(mail.cancelled))
        plan = self._scheduler.plan(started)
        if plan is None:
            self.learn()
            return None
        planned = self._clock.now()
        candidates = self._executor.speculate(plan)  # draft model: d beam steps of width w
        selected = self._executor.select(plan, candidates, self._policy.selection)  # which nodes deserve the target's time
        verdict = self._executor.verify(plan, candidates, selected.chosen)  # target: trees and prompt chunks, one pass
        verified = self._clock.now()
        self.learn()  # which may take milliseconds, while a GPU works
        self._scheduler.publish()
        scheduling = planned - started + self._clock.now() - verified
        slo = selected.slo.sum(1).to("cpu", non_blocking=True)  # [n], on the host once commit has waited
        return Flight(plan, verdict, slo, started, scheduling)

    def learn(self) -> None:
        """Learn from the last step, if that was not done yet: what steps take, and what the policy learns."""
        last, self._last = self._last, None
        if last is None:
            return
        self._latency.observe(last.shape, last.times)
        if self._policy.learner is not None:
            self._policy.learner.learn(last)

    def _stats(self, outcome: StepOutcome | None) -> EngineStats:
        plan = outcome.plan if outcome else None
        return EngineStats(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            kv_usage=self._scheduler.usage(),
            budget_rows=plan.limits.nodes + len(plan.decoding) + sum(c.length for c in plan.chunks) if plan else 0,
            used_rows=outcome.used_rows if outcome else 0,
            step_time_error=self._latency.error,
        )

    def _report(
        self, news: News, outcome: StepOutcome | None, slo_selected: tuple[int, ...], stats: EngineStats, now: float
    ) -> StepReport:
        updates = tuple(
            Update(
                p.state.request.id,
                p.tokens,
                p.logprobs,
                finish,
                None if finish is None else RequestResult.from_state(p.state, now, self._baseline),
            )
            for p, finish in news
        )
        return StepReport(updates, outcome, slo_selected, stats)


def _news(progress: Iterable[Progress]) -> News:
    """Progress, and why it was the last if it was: a step that begins before it is told may end who went on here."""
    return [(p, p.state.finish) for p in progress]
