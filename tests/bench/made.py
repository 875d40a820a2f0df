"""Results, replays and runs for tests of the reports, made up."""

from collections import Counter
from collections.abc import Callable

from adaserve.bench.replay import Progress, Replay
from adaserve.bench.runs import Point, Run
from adaserve.metrics import PHASES, RequestResult, StepTotals
from adaserve.request import FinishReason, Targets
from adaserve.workload import Workload

BASELINE = 0.02


def result(name: str, tpot: float, arrived: float = 0.0, kind: str = "coding", target: float | None = 0.03) -> RequestResult:
    """A completed request of 11 tokens whose first came after 0.1 s."""
    first, last = arrived + 0.1, arrived + 0.1 + 10 * tpot
    targets, finish = Targets(target, None), FinishReason.LENGTH
    return RequestResult(
        name, kind, targets, arrived, first, last, last, 5, 11, finish, BASELINE, 0, tpot, drafted=8, accepted=4, steps=6
    )


def totals() -> StepTotals:
    return StepTotals(
        steps=10,
        seconds=dict.fromkeys(PHASES, 0.05),
        rows=200,
        tokens=30,
        decodes=15,
        drafted=Counter({1: 20, 2: 9}),
        reached=Counter({1: 20, 2: 5}),
        accepted=Counter({1: 12, 2: 3}),
        expected=14.5,
        selected=Counter(slo=20, throughput=9),
        error=0.5,
        timed=10,
    )


def load_runner(capacities: dict[str, float]) -> Callable[[str, Workload, Callable[[Progress], None]], Replay]:
    """A Runner of a machine on which all attain up to a rate (requests/s) of the policy's, and beyond it as many as that rate."""

    def play(policy: str, workload: Workload, on_progress: Callable[[Progress], None]) -> Replay:
        rate = len(workload) / workload.arrivals[-1].at
        good = min(1.0, capacities[policy] / rate) * len(workload)
        on_progress(Progress(1.0, len(workload), 0, len(workload), round(good), len(workload)))
        results = tuple(
            result(str(number), 0.02 if number < good else 0.05, arrival.at, arrival.class_name)
            for number, arrival in enumerate(workload.arrivals)
        )
        return Replay(results, totals(), 3.0, workload.arrivals[-1].at)

    return play


def run(policy: str, point: Point = Point(), tpot: float = 0.02, complete: bool = True) -> Run:  # noqa: B008
    """A run of three requests: one of each of two classes, one refused."""
    results = (result("0", tpot), result("1", 0.02, 1.0, "chat"))
    refused = (RequestResult("2", "chat", Targets(0.03, None), 2.0, None, None, 2.0, 5, 0, None, BASELINE),)
    return Run(policy, point, results, refused, totals(), 1.5 * point.speed, 2.0, 3.0, complete, "abc")
