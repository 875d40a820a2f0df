"""The demo's figures and how they are shown: one block per class, one row per policy."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any

from adaserve.bench.demo_client import Answer
from adaserve.bench.demo_terminal import Terminal
from adaserve.metrics import RequestResult, percentile_ms, span, summarize
from adaserve.request import SLO


@dataclass(frozen=True)
class DemoRun:
    """One policy under one load.

    round: which repetition; runs of a round had the same arrivals. seconds: for how long requests were sent.
    """

    policy: str
    round: int
    answers: tuple[Answer, ...]
    start: float
    seconds: float

    @property
    def mean_running(self) -> float:
        """Requests in flight, averaged over the time in which requests were sent."""
        end = self.start + self.seconds
        spans = ((max(a.result.arrived, self.start), min(a.result.ended, end)) for a in self.answers)
        return sum(max(last - first, 0.0) for first, last in spans) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class DemoFigures:
    """What the table says about one policy and one class; None where nothing was measured.

    gap_p99_ms: 99th percentile of each request's longest time between two deliveries: speculation delivers in bursts.
    """

    requests: float
    attainment: float | None
    tpot_p50_ms: float | None
    tpot_p99_ms: float | None
    ttft_p99_ms: float | None
    gap_p99_ms: float | None
    goodput_tokens_per_s: float | None

    @classmethod
    def of(cls, run: DemoRun, class_name: str | None) -> "DemoFigures":
        """Figures of a run's requests of one class, or of all."""
        everyone = [answer.result for answer in run.answers]
        chosen = [answer for answer in run.answers if class_name in (None, answer.result.slo_class)]
        taken = [answer.result for answer in chosen if not answer.refused]
        refused = [answer.result for answer in chosen if answer.refused]
        report = summarize(run.policy, taken, refused, window=span(everyone))
        return cls(
            requests=len(chosen),
            attainment=report.slo_attainment,
            tpot_p50_ms=percentile_ms((result.tpot for result in taken), 50),
            tpot_p99_ms=percentile_ms((result.tpot for result in taken), 99),
            ttft_p99_ms=report.ttft_p99_ms,
            gap_p99_ms=percentile_ms((_gap(result) for result in taken), 99),
            goodput_tokens_per_s=report.goodput_tokens_per_s,
        )

    @classmethod
    def medians(cls, several: Sequence["DemoFigures"]) -> "DemoFigures":
        """Each figure's median over several runs, leaving out runs that lack it."""
        values = {}
        for item in fields(cls):
            known = [getattr(one, item.name) for one in several if getattr(one, item.name) is not None]
            values[item.name] = median(known) if known else None
        return cls(**values)  # type: ignore[arg-type]


def _gap(result: RequestResult) -> float | None:
    return None if result.first_token_at is None else result.longest_gap


@dataclass(frozen=True)
class DemoReport:
    """All runs of a demo and the conditions that they share. baseline: in s/token. classes: SLO by class, in order of show."""

    baseline: float
    rate: float
    classes: dict[str, SLO]
    runs: tuple[DemoRun, ...]

    @property
    def policies(self) -> tuple[str, ...]:
        """Policies that ran, in order."""
        return tuple(dict.fromkeys(run.policy for run in self.runs))

    def figures(self, policy: str, class_name: str | None) -> DemoFigures:
        """Medians over the policy's runs."""
        return DemoFigures.medians([DemoFigures.of(run, class_name) for run in self.runs if run.policy == policy])

    def same_text(self) -> tuple[int, int]:
        """How many requests got the same text under every policy, of how many that every policy completed."""
        same = compared = 0
        for number in {run.round for run in self.runs}:
            texts = [{a.result.id: a.text for a in run.answers if a.result.completed} for run in self.runs if run.round == number]
            if len(texts) < 2:
                continue
            for name in set.intersection(*(set(text) for text in texts)):
                compared += 1
                same += len({text[name] for text in texts}) == 1
        return same, compared

    def agreement(self) -> tuple[int, int]:
        """How often the server's own verdict (`metrics.slo.met`) was the client's, of how many that it gave."""
        judged = [a for run in self.runs for a in run.answers if a.met is not None and a.result.attained is not None]
        return sum(a.met == a.result.attained for a in judged), len(judged)

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            "baseline_ms": self.baseline * 1e3,
            "rate": self.rate,
            "targets_ms": {name: _target_ms(slo, self.baseline) for name, slo in self.classes.items()},
            "same_text": self.same_text(),
            "server_agrees": self.agreement(),
            "policies": {
                policy: {
                    "mean_running": median(run.mean_running for run in self.runs if run.policy == policy),
                    "overall": asdict(self.figures(policy, None)),
                    "per_class": {name: asdict(self.figures(policy, name)) for name in self.classes},
                    "attainment_of_each_run": [DemoFigures.of(run, None).attainment for run in self.runs if run.policy == policy],
                    "errors": sorted({a.error for run in self.runs if run.policy == policy for a in run.answers if a.error}),
                }
                for policy in self.policies
            },
        }


def _target_ms(slo: SLO, baseline: float) -> float | None:
    tpot = slo.resolve(baseline).tpot
    return None if tpot is None else tpot * 1e3


HEADINGS = ("attained", "TPOT p50", "TPOT p99", "TTFT p99", "gap p99", "goodput")


def show(report: DemoReport, terminal: Terminal) -> None:
    """Print the tables, and below them what was measured how."""
    for name, slo in report.classes.items():
        target, times = _target_ms(slo, report.baseline), slo.tpot_multiple
        terminal.say()
        terminal.say(terminal.bold(name) + f"   target {target:.1f} ms per token" + (f" ({times:g} x baseline)" if times else ""))
        _table(report, name, terminal)
    terminal.say()
    terminal.say(terminal.bold("all requests"))
    _table(report, None, terminal)
    terminal.say()
    for line in _notes(report):
        terminal.say(terminal.dim(line))


def _table(report: DemoReport, class_name: str | None, terminal: Terminal) -> None:
    rows = {policy: report.figures(policy, class_name) for policy in report.policies}
    best = max((row.attainment for row in rows.values() if row.attainment is not None), default=None)
    width = max(len(policy) for policy in rows)
    terminal.say(terminal.dim(f"  {'':{width}} {'requests':>9}" + "".join(f"{heading:>13}" for heading in HEADINGS)))
    for policy, row in rows.items():
        attained = f"{_percent(row.attainment):>13}"
        cells = [_ms(row.tpot_p50_ms), _ms(row.tpot_p99_ms), _ms(row.ttft_p99_ms), _ms(row.gap_p99_ms)]
        goodput = f"{'-' if row.goodput_tokens_per_s is None else f'{row.goodput_tokens_per_s:.0f} tok/s':>13}"
        terminal.say(
            f"  {policy:{width}} {row.requests:>9g}"
            + (terminal.green(attained) if row.attainment == best else attained)
            + "".join(f"{cell:>13}" for cell in cells)
            + goodput
        )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def _notes(report: DemoReport) -> list[str]:
    running = (
        f"{policy} {median(run.mean_running for run in report.runs if run.policy == policy):.1f}" for policy in report.policies
    )
    notes = [
        f"Baseline: {report.baseline * 1e3:.1f} ms per token, one request alone without speculation.",
        f"Load: {report.rate:.2f} requests/s. Requests at once, on average: {', '.join(running)}.",
        "Measured by the client, at delivery. TPOT = (last token - first token) / (tokens - 1). Gap: longest wait in an answer.",
        "Goodput counts the tokens of requests that met their target. Requests that failed or never ended have missed it.",
    ]
    rounds = len({run.round for run in report.runs})
    if rounds > 1:
        notes.append(f"Each figure is the median of {rounds} runs.")
    same, compared = report.same_text()
    if compared:
        notes.append(f"The same text under every policy: {same} of {compared} answers.")
    agreed, judged = report.agreement()
    if judged:
        notes.append(f"The server's own verdict (metrics.slo.met) was the client's in {agreed} of {judged} answers.")
    errors = sorted({a.error for run in report.runs for a in run.answers if a.error})
    failed = sum(a.error is not None for run in report.runs for a in run.answers)
    if errors:
        notes.append(f"{failed} requests got no full answer: {'; '.join(errors[:3])}")
    return notes
