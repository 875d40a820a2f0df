"""Open-loop replay against the built-in engine: requests arrive when the workload says, whether or not the engine keeps up."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from adaserve.engine import Engine, StepReport
from adaserve.metrics import RequestResult, StepTotals
from adaserve.models.tokenizer import Tokenizer
from adaserve.request import SLO, Request, SamplingParams
from adaserve.workload import Arrival, Workload

IDLE_WAIT = 0.05


@dataclass(frozen=True)
class Replay:
    """What a replay brought.

    results: of every request that was taken in. refused: of those that were turned away.
    totals: sums over the steps; None where they cannot be seen. mean_running: requests that ran at once, on average.
    stopped: it was cut short; requests that had arrived by then and not ended are among the results, unfinished.
    """

    results: tuple[RequestResult, ...]
    totals: StepTotals | None
    mean_running: float
    seconds: float
    refused: tuple[RequestResult, ...] = ()
    stopped: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a replay got. seconds: since its start, on the engine's clock. attained: of `judged` requests with targets."""

    seconds: float
    arrived: int
    running: int
    ended: int
    attained: int
    judged: int


class ReplayFailed(Exception):
    """The engine or the server broke down in the middle of a replay; its cause says how. `played` is what had been measured."""

    def __init__(self, played: Replay) -> None:
        super().__init__("the replay broke down")
        self.played = played


def to_requests(
    workload: Workload, tokenizer: Tokenizer, baseline: float, eos_ids: Sequence[int], *, temperature: float, seed: int
) -> list[tuple[float, Request]]:
    """Tokenise a workload: pairs of arrival time (seconds after the start) and request. `Request.arrived` is set at replay."""
    timed = []
    for number, arrival in enumerate(workload.arrivals):
        prompt = prompt_tokens(arrival, tokenizer)
        sampling = SamplingParams(max_tokens=arrival.max_tokens, temperature=temperature, ignore_eos=arrival.ignore_eos)
        request = Request(
            id=f"{number}",
            prompt=tuple(prompt),
            sampling=sampling,
            targets=(arrival.slo or SLO()).resolve(baseline),
            seed=seed + number,
            arrived=0.0,
            slo_class=arrival.class_name,
            stop_ids=() if arrival.ignore_eos else tuple(eos_ids),
        )
        timed.append((arrival.at, request))
    return timed


def prompt_tokens(arrival: Arrival, tokenizer: Tokenizer) -> list[int]:
    """The token ids of a request's prompt; a made-up one has exactly the stated length."""
    if arrival.parts:
        return [token for part in arrival.parts for token in tokenizer.encode(part.text, False)[: part.tokens]]
    if arrival.chat:
        return tokenizer.chat([{"role": "user", "content": arrival.prompt}])
    return tokenizer.encode(arrival.prompt)


def replay(
    engine: Engine,
    timed: Sequence[tuple[float, Request]],
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
    drain: float = math.inf,
    on_step: Callable[[StepReport, float], None] = lambda report, seconds: None,
) -> Replay:
    """Run the requests to their end, in order of arrival; `on_progress` is called after every step, and while nothing runs.

    on_step: hears every step's report, and its seconds with all that goes on between it and the next one.
    When `stop` says so, or `drain` seconds after the last arrival, what has not ended is cancelled and counts as unfinished.
    The engine is left empty. Raises ReplayFailed, with all that was measured, when a step raises anything.
    """
    clock = engine.clock
    start = clock.now()
    limit = start + (timed[-1][0] if timed else 0.0) + drain
    results: list[RequestResult] = []
    totals = StepTotals()
    arrived = running = steps = attained = judged = 0
    stopped = False

    def played(unfinished: Sequence[RequestResult], cut: bool) -> Replay:
        return Replay((*results, *unfinished), totals, running / max(1, steps), clock.now() - start, stopped=cut)

    def open_requests() -> list[Request]:
        ended = {result.id for result in results}
        return [replace(request, arrived=start + at) for at, request in timed[:arrived] if request.id not in ended]

    def progress(running_now: int) -> Progress:
        return Progress(clock.now() - start, arrived, running_now, len(results), attained, judged)

    try:
        before = clock.now()
        while len(results) < len(timed):
            stopped = stop()
            if stopped or clock.now() > limit:
                break
            while arrived < len(timed) and start + timed[arrived][0] <= clock.now():
                at, request = timed[arrived]
                engine.add(replace(request, arrived=start + at))
                arrived += 1
            report = engine.step()
            if report is None:
                clock.wait_until(min(start + timed[arrived][0], clock.now() + IDLE_WAIT))
                on_progress(progress(0))
                before = clock.now()
                continue
            for ended in (u.result for u in report.updates if u.result is not None):
                results.append(ended)
                judged += ended.attained is not None
                attained += ended.attained is True
            if report.outcome is not None:
                totals.add(report.outcome, report.slo_selected)
                running += report.stats.running
                steps += 1
            on_progress(progress(report.stats.running))
            now = clock.now()
            on_step(report, now - before)
            before = now
    except Exception as error:
        now = clock.now()
        # What is lost has missed its targets by any baseline.
        lost = [RequestResult.refused(request, now, baseline=0.0) for request in open_requests()]
        raise ReplayFailed(played(lost, True)) from error
    seconds = clock.now() - start
    unfinished = _cancel(engine, {request.id for request in open_requests()})
    return replace(played(unfinished, stopped), seconds=seconds)


def _cancel(engine: Engine, ids: set[str]) -> list[RequestResult]:
    """Cancel requests; returns how far they got, as unfinished."""
    for request_id in ids:
        engine.cancel(request_id)
    found: list[RequestResult] = []
    while len(found) < len(ids) and (report := engine.step()) is not None:
        found += [replace(u.result, finish=None) for u in report.updates if u.result is not None]
    return found
