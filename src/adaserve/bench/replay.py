"""Open-loop replay against the built-in engine: requests arrive when the workload says, whether or not the engine keeps up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adaserve.engine import Engine
from adaserve.metrics import RequestResult, StepTotals
from adaserve.models.tokenizer import Tokenizer
from adaserve.request import SLO, Request, SamplingParams
from adaserve.workload import Workload

IDLE_WAIT = 0.05


@dataclass(frozen=True)
class Replay:
    """What a replay brought: every request's result, sums over the steps, and the requests running at each step on average."""

    results: tuple[RequestResult, ...]
    totals: StepTotals
    mean_running: float
    seconds: float


def to_requests(
    workload: Workload, tokenizer: Tokenizer, baseline: float, eos_ids: Sequence[int], *, temperature: float, seed: int
) -> list[tuple[float, Request]]:
    """Tokenise a workload: pairs of arrival time (seconds after the start) and request. `Request.arrived` is set at replay."""
    timed = []
    for number, arrival in enumerate(workload.arrivals):
        if arrival.chat:
            prompt = tokenizer.chat([{"role": "user", "content": arrival.prompt}])
        else:
            prompt = tokenizer.encode(arrival.prompt)
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


def replay(
    engine: Engine, timed: Sequence[tuple[float, Request]], on_progress: Callable[[int, int, int], None] = lambda *counts: None
) -> Replay:
    """Run the requests to their end; on_progress(arrived, running, ended) is called after every step."""
    clock = engine.clock
    start = clock.now()
    results: list[RequestResult] = []
    totals = StepTotals()
    arrived = running = steps = 0
    while len(results) < len(timed):
        while arrived < len(timed) and start + timed[arrived][0] <= clock.now():
            at, request = timed[arrived]
            engine.add(_stamped(request, start + at))
            arrived += 1
        report = engine.step()
        if report is None:
            clock.wait_until(min(start + timed[arrived][0], clock.now() + IDLE_WAIT))
            continue
        results += [u.result for u in report.updates if u.result is not None]
        if report.outcome is not None:
            totals.add(report.outcome, report.slo_selected)
            running += report.stats.running
            steps += 1
        on_progress(arrived, report.stats.running, len(results))
    return Replay(tuple(results), totals, running / max(1, steps), clock.now() - start)


def _stamped(request: Request, at: float) -> Request:
    return Request(**{**vars(request), "arrived": at})
