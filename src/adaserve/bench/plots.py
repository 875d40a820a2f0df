"""The report's plots, after the paper's Figures 8 to 12, 14 and 15. Needs matplotlib; import this module where that may fail."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adaserve.bench.experiment import describe
from adaserve.bench.report_text import Reading
from adaserve.bench.runs import Run
from adaserve.metrics import NO_CLASS, PHASES

SIZE = (6.4, 4.0)
DPI = 130
MARKERS = "osD^vP*Xhp"

Value = Callable[[Run], float | None]


def draw(out: Path, reading: Reading) -> tuple[tuple[str, str], ...]:
    """Draw all that the runs allow; returns file names in the folder and their captions."""
    return tuple((name, caption) for name, caption, figure in _figures(reading) if _save(out / name, figure))


def _save(path: Path, paint: Callable[[Axes], bool]) -> bool:
    """Paint a figure and write it; False when there was nothing to paint."""
    figure = Figure(figsize=SIZE, layout="tight")
    painted = paint(figure.subplots())
    if painted:
        figure.savefig(path, dpi=DPI)
    return painted


def _figures(reading: Reading) -> Iterator[tuple[str, str, Callable[[Axes], bool]]]:
    colours = {policy: f"C{index % 10}" for index, policy in enumerate(reading.policies)}
    rate = ("speed", "requests per second", lambda run: run.offered)
    urgent = ("urgent", "share of urgent requests", lambda run: run.point.urgent)
    scale = ("slo_scale", "SLO scale of the urgent class", lambda run: run.point.slo_scale)
    attained = ("SLO attainment", lambda run: run.report.slo_attainment)
    goodput = ("goodput, tokens/s", lambda run: run.report.goodput_tokens_per_s)
    accepted = ("accepted draft tokens per request and step", lambda run: run.report.mean_accepted)
    for name, caption, axis, value in (
        ("attainment_by_rate.png", "Attainment by load (the paper's Figure 8)", rate, attained),
        ("goodput_by_rate.png", "Goodput by load (the paper's Figure 9)", rate, goodput),
        ("attainment_by_urgent.png", "Attainment by the share of urgent requests (Figure 10)", urgent, attained),
        ("attainment_by_slo_scale.png", "Attainment by SLO scale (Figure 11)", scale, attained),
        ("accepted_by_rate.png", "Accepted draft tokens by load (Figure 15)", rate, accepted),
    ):
        yield name, caption, partial(_lines, reading=reading, colours=colours, axis=axis, value=value)
    place = f" at {describe('', reading.focus[0].point).removeprefix(', ')}" if reading.focus else ""
    yield "per_class.png", f"Attainment by class{place} (Figure 12)", lambda axes: _per_class(axes, reading.focus, colours)
    yield "tpot.png", f"TPOT against its target, by class{place}", lambda axes: _tpot(axes, reading.focus, colours)
    yield (
        "accepted.png",
        f"Accepted draft tokens per request and step, by class{place}",
        lambda axes: _accepted(axes, reading.focus, colours),
    )
    yield "step_time.png", f"Where a step's time goes{place} (Figure 14)", lambda axes: _step_time(axes, reading.focus)
    yield "slack.png", f"Slack of each request by its arrival{place}", lambda axes: _slack(axes, reading.focus, colours)


def _lines(axes: Axes, reading: Reading, colours: dict[str, str], axis: tuple[str, str, Value], value: tuple[str, Value]) -> bool:
    """One line a policy, over runs that differ in this axis alone."""
    field, x_label, x_of = axis
    y_label, y_of = value
    painted = False
    for run_of in _families(reading.everything, field):
        for index, policy in enumerate(reading.policies):
            points = sorted(
                (x, y) for r in run_of if r.policy == policy and (x := x_of(r)) is not None and (y := y_of(r)) is not None
            )
            if points:
                marker = MARKERS[index % len(MARKERS)]
                label = None if policy in axes.get_legend_handles_labels()[1] else policy
                axes.plot(*zip(*points, strict=True), color=colours[policy], marker=marker, markersize=4, label=label)
                painted = True
    if painted:
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set_ylim(bottom=0, top=1.02 if "attainment" in y_label else None)
        axes.grid(alpha=0.3)
        _legend(axes)
    return painted


def _families(runs: Sequence[Run], field: str) -> list[list[Run]]:
    """Groups of runs that agree in all axes but one, and differ in that one."""
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        rest = tuple(value for name, value in asdict(run.point).items() if name != field)
        groups.setdefault(rest, []).append(run)
    return [group for group in groups.values() if len({getattr(run.point, field) for run in group}) > 1]


def _per_class(axes: Axes, runs: Sequence[Run], colours: dict[str, str]) -> bool:
    names = sorted({name for run in runs for name, found in run.report.per_class.items() if found.attainment is not None})

    def attained(run: Run, name: str) -> float:
        found = run.report.per_class.get(name)
        return (found.attainment or 0.0) if found else 0.0

    axes.set(ylabel="SLO attainment", ylim=(0, 1.02))
    return _bars(axes, runs, names, colours, attained)


def _accepted(axes: Axes, runs: Sequence[Run], colours: dict[str, str]) -> bool:
    drafting = [run for run in runs if any(result.drafted for result in run.results)]
    names = sorted({result.slo_class or NO_CLASS for run in drafting for result in run.results})

    def accepted(run: Run, name: str) -> float:
        mine = [r for r in run.results if (r.slo_class or NO_CLASS) == name]
        return sum(r.accepted for r in mine) / max(1, sum(r.steps for r in mine))

    axes.set(ylabel="accepted draft tokens per request and step")
    return _bars(axes, drafting, names, colours, accepted)


def _bars(
    axes: Axes, runs: Sequence[Run], names: Sequence[str], colours: dict[str, str], height: Callable[[Run, str], float]
) -> bool:
    """A group of bars a class, one bar a run."""
    if not names:
        return False
    width = 0.8 / len(runs)
    for index, run in enumerate(runs):
        places = [place + (index - (len(runs) - 1) / 2) * width for place in range(len(names))]
        axes.bar(places, [height(run, name) for name in names], width, color=colours[run.policy], label=run.policy)
    axes.set_xticks(range(len(names)), names)
    _legend(axes)
    return True


def _tpot(axes: Axes, runs: Sequence[Run], colours: dict[str, str]) -> bool:
    """Distribution functions of TPOT / target: what is left of 1 has met it. A line style a class."""
    painted = False
    styles = ("-", "--", ":", "-.")
    names = sorted({result.slo_class or NO_CLASS for run in runs for result in run.everyone if result.targets.tpot})
    for run in runs:
        for number, name in enumerate(names):
            mine = [r for r in run.everyone if (r.slo_class or NO_CLASS) == name and r.targets.tpot is not None]
            ratios = sorted(r.tpot / r.targets.tpot for r in mine if r.completed and r.tpot is not None and r.targets.tpot)
            if ratios:
                shares = [(index + 1) / len(mine) for index in range(len(ratios))]
                style = styles[number % len(styles)]
                axes.step(ratios, shares, where="post", color=colours[run.policy], linestyle=style)
                painted = True
    if painted:
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set(xlabel="TPOT / target", ylabel="share of the class's requests", ylim=(0, 1.02), xlim=(0, 3))
        marks = [Line2D([], [], color=colours[policy], label=policy) for policy in dict.fromkeys(run.policy for run in runs)]
        marks += [Line2D([], [], color="black", linestyle=styles[n % len(styles)], label=name) for n, name in enumerate(names)]
        _legend(axes, marks)
        axes.grid(alpha=0.3)
    return painted


def _step_time(axes: Axes, runs: Sequence[Run]) -> bool:
    seen = [run for run in runs if run.totals is not None and run.totals.steps]
    if not seen:
        return False
    below = [0.0] * len(seen)
    for index, phase in enumerate(PHASES):
        heights = [run.totals.seconds[phase] / run.totals.steps * 1e3 for run in seen if run.totals is not None]
        axes.bar(range(len(seen)), heights, 0.6, bottom=below, color=f"C{index}", label=phase)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set_xticks(range(len(seen)), [run.policy for run in seen], rotation=20, ha="right")
    axes.set(ylabel="ms per step")
    _legend(axes)
    return True


def _slack(axes: Axes, runs: Sequence[Run], colours: dict[str, str]) -> bool:
    """Each request's (target - TPOT) / target, over its arrival: above 0 it was faster than it had to be."""
    painted = False
    for run in runs:
        start = min((r.arrived for r in run.everyone), default=0.0)
        points = [
            (r.arrived - start, max(1 - r.tpot / r.targets.tpot, -1.5))
            for r in run.everyone
            if r.completed and r.tpot is not None and r.targets.tpot is not None
        ]
        if points:
            when, slack = zip(*points, strict=True)
            axes.scatter(when, slack, s=5, color=colours[run.policy], alpha=0.6, label=run.policy)
            painted = True
    if painted:
        axes.axhline(0.0, color="black", linewidth=0.8)
        axes.set(xlabel="arrival, seconds", ylabel="slack: (target - TPOT) / target", ylim=(-1.55, 1.05))
        _legend(axes)
    return painted


def _legend(axes: Axes, marks: Sequence[Line2D] | None = None) -> None:
    """The legend, beside the axes, where it hides nothing. marks: what it explains; None for all that has a label."""
    handles = axes.get_legend_handles_labels()[0] if marks is None else list(marks)
    axes.legend(handles=handles, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
