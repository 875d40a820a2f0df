"""report.md: tables that a person reads, and the rules by which they came about."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaserve.bench.experiment import Capacity, describe
from adaserve.bench.runs import Point, Run
from adaserve.metrics import PHASES, percentile_ms

RULES = """\
- Attained: every stated target met, and the first token within 10 s x (baseline / 30 ms). "TPOT alone" is the paper's measure.
- Shares are of every request that arrived with a target: refused, failed and unfinished ones have missed.
- Goodput: output tokens of requests that attained, per second from first arrival to last completion.
- The policies of one machine had the same requests at the same times, slots, cache, prefix reuse and admission in order of
  arrival; `priority`, `fastserve`, `vtc` and `adaserve+` admit in an order of their own. None refuses what fits.
- TPOT = (last token - first token) / (tokens - 1). Gap: the longest wait between two deliveries in an answer.
- Look-up of drafts over earlier requests is off. TTFT counts from when the request was due."""

LOOKUP_WARNING = (
    "**Drafts were looked up in texts that ran beyond the model's end of text, where small models repeat themselves: "
    "acceptance is too high. Run with --stop-at-eos.**"
)


@dataclass(frozen=True)
class Reading:
    """All that the human report is made from."""

    config: dict[str, Any]
    device: str
    runs: tuple[Run, ...]
    capacity: Capacity | None

    @property
    def policies(self) -> tuple[str, ...]:
        """Policies, in order of appearance."""
        return tuple(dict.fromkeys(run.policy for run in self.everything))

    @property
    def everything(self) -> tuple[Run, ...]:
        """Runs and probes, each once."""
        probes = self.capacity.probes if self.capacity is not None else ()
        return tuple({(run.policy, run.point): run for run in (*self.runs, *probes)}.values())

    @property
    def focus(self) -> tuple[Run, ...]:
        """The runs of one point, for what is shown of one point alone: the first that most policies ran at."""
        by_point: dict[Point, tuple[Run, ...]] = {}
        for run in self.runs or self.everything:
            by_point[run.point] = (*by_point.get(run.point, ()), run)
        return max(by_point.values(), key=len, default=())


def page(reading: Reading, plots: Sequence[tuple[str, str]], note: str) -> str:
    """The page, in Markdown. plots: file names beside it and their captions."""
    sections = [
        f"# {Path(reading.config.get('trace', 'Benchmark')).name} on {reading.device}",
        _facts(reading),
        _capacity(reading),
        "## Runs\n\n" + _runs(reading.runs),
        "## Classes\n\n" + _classes(reading.runs),
        _steps(reading.runs),
        "## Plots\n\n" + "\n\n".join(f"![{caption}]({name})\n\n*{caption}*" for name, caption in plots) if plots else note,
        "## How it was measured\n\n" + RULES,
        "## Configuration\n\n" + _table(["option", "value"], [[k, f"`{v}`"] for k, v in _options(reading.config)]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _facts(reading: Reading) -> str:
    config = reading.config
    baseline = config.get("baseline_ms")
    words = [f"Baseline {baseline:.2f} ms per token (one request alone, without speculation)."] if baseline else []
    words += [f"Commit {config['commit']}."] if config.get("commit") else []
    cut = [describe(run.policy, run.point) for run in reading.runs if not run.complete]
    words += [f"**Cut short: {'; '.join(cut)}.** What had not ended by then counts as missed."] if cut else []
    words += [LOOKUP_WARNING] if config.get("looks_up_beyond_eos") else []
    return " ".join(words)


def _capacity(reading: Reading) -> str:
    if reading.capacity is None:
        return ""
    goals = reading.capacity.speeds
    rows = [[policy, *(_speed(goals[goal], policy) for goal in goals)] for policy in reading.policies]
    probes = [
        [run.policy, f"{run.point.speed:g}", f"{run.offered:.2f}", _percent(run.report.slo_attainment)]
        for run in sorted(reading.capacity.probes, key=lambda run: (run.policy, run.point.speed))
    ]
    return (
        "## Capacity\n\nThe highest load, as a multiple of the trace's own rate, at which so many requests attain.\n\n"
        + _table(["policy", *(f"capacity@{goal:.0%}" for goal in goals)], rows)
        + "\n\nEvery probe:\n\n"
        + _table(["policy", "speed", "requests/s", "attained"], probes)
    )


def _speed(speeds: dict[str, float | None], policy: str) -> str:
    if policy not in speeds:
        return "not found out"
    speed = speeds[policy]
    return "below the lowest probe" if speed is None else f"{speed:g}"


def _runs(runs: Sequence[Run]) -> str:
    headings = [
        "run", "requests/s", "running", "requests", "attained", "missed", "TPOT alone", "goodput tokens/s", "all tokens/s",
        "TTFT p50", "TTFT p99", "gap p99", "tokens per step", "refused",
    ]  # fmt: skip
    rows = []
    for run in runs:
        report = run.report
        missed = None if report.slo_attainment is None else 1 - report.slo_attainment
        gaps = (result.longest_gap for result in run.results if result.first_token_at is not None)
        rows.append(
            [
                describe(run.policy, run.point), f"{run.offered:.2f}", f"{run.mean_running:.1f}", f"{report.requests}",
                _percent(report.slo_attainment), _percent(missed), _percent(report.tpot_attainment),
                f"{report.goodput_tokens_per_s:.0f}", f"{report.throughput_tokens_per_s:.0f}",
                _ms(report.ttft_p50_ms), _ms(report.ttft_p99_ms), _ms(percentile_ms(gaps, 99)),
                _number(report.mean_tokens_per_step), f"{report.refused}",
            ]
        )  # fmt: skip
    return _table(headings, rows)


def _classes(runs: Sequence[Run]) -> str:
    rows = [
        [
            describe(run.policy, run.point), name, f"{found.requests}", _percent(found.attainment),
            _ms(found.tpot_p50_ms), _ms(found.tpot_p99_ms), _ms(found.ttft_p50_ms), _ms(found.ttft_p99_ms),
        ]
        for run in runs
        for name, found in run.report.per_class.items()
    ]  # fmt: skip
    return _table(["run", "class", "requests", "attained", "TPOT p50", "TPOT p99", "TTFT p50", "TTFT p99"], rows)


def _steps(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        totals = run.totals
        if totals is None or totals.steps == 0:
            continue
        cells = [f"{totals.seconds[phase] / totals.steps * 1e3:.2f}" for phase in PHASES]
        rows.append(
            [
                describe(run.policy, run.point), f"{totals.steps}", f"{totals.rows / totals.steps:.1f}", *cells,
                _percent(totals.step_share["schedule"] + totals.step_share["select"]),
                _number(totals.mean_accepted), _percent(totals.step_time_error),
            ]
        )  # fmt: skip
    if not rows:
        return ""
    headings = ["run", "steps", "rows", *(f"{phase} ms" for phase in PHASES), "host share", "accepted", "prediction off by"]
    words = "Averages per step; accepted: draft tokens per request and step; host share: scheduling and selection."
    return f"## Steps\n\n{words}\n\n" + _table(headings, rows)


def _options(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if name not in ("points", "probes") and value not in (None, [], {}):
            yield name, value


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
