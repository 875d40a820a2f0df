"""The simulated comparison of docs/results.md: capacities, loads, sensitivity, as tables and plots.

    .venv/bin/python benchmarks/simulated_results.py PART TRACE... --profile NAME --out FOLDER [--duration S] [--jobs N]

PART is
    capacity     the load that 95% and 99% stand, by urgent share, acceptance as recorded and swapped
    bound        the load whose rows alone fill the machine, by urgent share: what no policy can bear for long
    loads        violations and goodput by load, with plots
    sensitivity  draft quality and cost, constants, order, prompt rows
    parts        `adaserve+` with each of its parts left out, and with chains alone, by load
    light        low loads: `adaserve+` beside fixed settings
    every        every policy on every trace given, from end to end; the only part that takes more than one
Every run is kept in FOLDER as it ends: what was cut short goes on where it stopped, and a second call only prints. Tables go to
stdout in Markdown and to FOLDER/PART.md.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from simulated_comparison import ABLATIONS, PAPERS, POLICIES, Change, Comparison

from adaserve.bench.capacity import grid_index, grid_speed
from adaserve.bench.numbers import auto_or_positive
from adaserve.bench.runs import Point, Run
from adaserve.clock import WallClock
from adaserve.executor.shipped import profile_named
from adaserve.metrics import PolicyReport
from adaserve.simulate import constants_for
from adaserve.step import Order
from adaserve.workload import read

FIXED = ("continuous", "spec:1", "spec:2", "spec:3", "spec:4", "spec:6", "spec:8")
GOALS = (0.95, 0.99)


def capacity_part(bench: Comparison, policies: Sequence[str], shares: Sequence[float]) -> str:
    """Capacity at 95% and 99% by urgent share, acceptance as recorded and swapped."""
    rows = []
    for swap in (False, True):
        for urgent in shares:
            setting = Change(f"{urgent:.0%}, {'swapped' if swap else 'recorded'}", swap=swap, urgent=urgent)
            found = bench.capacities(setting, policies, GOALS)
            for goal in GOALS:
                here = {policy: found[goal][policy] or 0.0 for policy in policies}
                papers = max((load for policy, load in here.items() if policy in PAPERS), default=0.0)
                blind = max(here.get("adaserve", 0.0), here.get("throughput", 0.0))
                ratios = (
                    _ratio(here.get("adaserve", 0.0), papers),
                    _ratio(here.get("adaserve+", 0.0), papers),
                    _ratio(here.get("adaserve+", 0.0), blind),
                )
                rows.append([setting.name, f"{goal:.0%}", *(_rate(found[goal][p]) for p in policies), *ratios])
            print(rows[-2], rows[-1], file=sys.stderr, flush=True)
    ratios = ("adaserve / best baseline", "adaserve+ / best baseline", "adaserve+ / best of the two")
    return _table(["urgent, acceptance", "goal", *policies, *ratios], rows)


def bound_part(bench: Comparison, shares: Sequence[float], start: float) -> str:
    """The largest load from `start` on whose prompts and outputs, a row a token, fit at a row's least cost, without reuse."""
    rows, least = min(bench.profile.verify_ms_by_rows.items(), key=lambda point: point[1] / point[0])
    most = rows / (least / 1e3)  # a second
    found = []
    for urgent in shares:
        if bench.demand(start, urgent) > most:
            raise SystemExit(f"{start} times the rate is more than the machine bears: give a lower --start")
        index = next(i for i in itertools.count(grid_index(start)) if bench.demand(grid_speed(i), urgent) > most) - 1
        speed = grid_speed(index)
        found.append([f"{urgent:.0%}", _rate(speed), f"{bench.demand(speed, urgent):.0f}", f"{most:.0f} ({rows} at once)"])
    return _table(["urgent", "load", "rows/s needed", "rows/s computed at most"], found)


def loads_part(bench: Comparison, policies: Sequence[str], rates: Sequence[float]) -> str:
    """Violations and goodput by load; draws the plots."""
    experiment = bench.experiment(Change("as recorded"))
    points = [Point(speed=grid_speed(grid_index(rate / bench.rate))) for rate in rates]
    runs = experiment.sweep(policies, points)
    bench.report(runs)
    rows = []
    for point in points:
        here = {run.policy: run.report for run in runs if run.point == point}
        missed = {name: 1 - (report.slo_attainment or 0.0) for name, report in here.items()}
        papers = [name for name in policies if name in PAPERS]
        fewest, most = min(missed[p] for p in papers), max(here[p].goodput_tokens_per_s for p in papers)
        ours, plus = here["adaserve"], here["adaserve+"]
        rows.append(
            [
                f"{point.speed * bench.rate:.1f}",
                *(f"{missed[p]:.1%} / {here[p].goodput_tokens_per_s:.0f}" for p in policies),
                f"{fewest / missed['adaserve']:.1f}x" if missed["adaserve"] else "none left",
                f"{fewest / missed['adaserve+']:.1f}x" if missed["adaserve+"] else "none left",
                f"{ours.goodput_tokens_per_s / most:.2f}x" if most else "-",
                f"{plus.goodput_tokens_per_s / most:.2f}x" if most else "-",
                f"{ours.ttft_p50_ms or 0:.0f} / {ours.ttft_p99_ms or 0:.0f}",
                f"{plus.ttft_p50_ms or 0:.0f} / {plus.ttft_p99_ms or 0:.0f}",
            ]
        )
    heads = [
        "requests/s",
        *policies,
        "violations, best baseline / adaserve",
        "/ adaserve+",
        "goodput, adaserve / best baseline",
        "adaserve+ / best",
        "TTFT p50 / p99 ms of adaserve",
        "of adaserve+",
    ]
    return _table(heads, rows)


def sensitivity_part(bench: Comparison, speed: float) -> str:
    """Attainment and goodput at one load as one thing after the other changes."""
    shipped = constants_for(bench.profile, "adaserve")
    changes = [Change("as shipped")]
    changes += [Change(f"draft top-1 {q:g}", acceptance=f"synthetic:{q:g}") for q in (0.45, 0.6, 0.75, 0.9)]
    changes += [Change(f"draft cost x {x:g}", draft_cost=x) for x in (0.5, 2.0, 4.0)]
    changes += [Change(f"n_max {n}", constants=(("per_request", n),)) for n in (1, 2, 4, 8)]
    changes += [Change(f"c1 {c}", constants=(("depth_offset", c),)) for c in (0, 8, 16)]
    changes += [Change(f"c2 {c}, W 3", constants=(("width_offset", c), ("width_max", 3))) for c in (0, 1)]
    changes += [Change(f"prompt rows {r}", constants=(("prompt_rows", r),)) for r in (32, 64, 128, 256, 512)]
    changes += [Change(f"B1 x {x:g}", constants=(("verify_rows", round(shipped.verify_rows * x)),)) for x in (0.5, 2.0)]
    changes += [Change(f"order {order.value}", order=order) for order in (Order.EASIEST, Order.ATTAINABLE)]
    rows = []
    for setting in changes:
        drafts = setting.draft_cost != 1 or (setting.acceptance or "").startswith("synthetic")
        policies = ["adaserve", *(["throughput", "spec:4"] if drafts or setting.name == "as shipped" else [])]
        experiment = bench.experiment(setting)
        found = {run.policy: run.report for run in experiment.sweep(policies, [Point(speed=speed, urgent=setting.urgent)])}
        rows.append([setting.name, *(_brief(found.get(name)) for name in ("adaserve", "throughput", "spec:4"))])
        print(rows[-1], file=sys.stderr, flush=True)
    return _table(["changed", "adaserve", "throughput", "spec:4"], rows)


def parts_part(bench: Comparison, speeds: Sequence[float]) -> str:
    """Attainment and goodput of `adaserve+` with each part left out, by load."""
    experiment = bench.experiment(Change("as recorded"))
    points = [Point(speed=speed) for speed in speeds]
    found = {(run.policy, run.point): run.report for run in experiment.sweep(ABLATIONS, points)}
    rows = [
        [f"{point.speed:g}", *(_brief(found[name, point]) for name in ABLATIONS)]
        for point in points
        if ("adaserve+", point) in found
    ]
    return _table(["load", *ABLATIONS], rows)


def light_part(bench: Comparison, speeds: Sequence[float]) -> str:
    """Low loads: share attained and mean TPOT in ms of `adaserve+`, its relatives and fixed settings."""
    policies = ("adaserve+", "adaserve", "throughput", *FIXED)
    experiment = bench.experiment(Change("as recorded"))
    points = [Point(speed=speed) for speed in speeds]
    found = {(run.policy, run.point): run for run in experiment.sweep(policies, points)}
    rows = []
    for point in points:
        tpot = {name: _mean_tpot_ms(found[name, point]) for name in policies}
        best = min(FIXED, key=tpot.__getitem__)
        cells = [f"{found[name, point].report.slo_attainment or 0.0:.1%} / {tpot[name]:.1f}" for name in policies]
        rows.append([f"{point.speed * bench.rate:.2f}", *cells, f"{best}: {tpot['adaserve+'] / tpot[best]:.2f}"])
    return _table(["requests/s", *policies, "TPOT of adaserve+ / best fixed"], rows)


def every_part(benches: Sequence[Comparison], policies: Sequence[str], speed: float) -> str:
    """Every policy on whole traces: share attained and goodput."""
    rows = []
    steps, seconds, began = 0, 0.0, WallClock().now()
    for bench in benches:
        runs = bench.experiment(Change("as recorded")).sweep(policies, [Point(speed=speed)])
        rows.append([f"{bench.profile.name}, {speed * bench.rate:.1f}/s", *(_brief(run.report) for run in runs)])
        print(rows[-1], file=sys.stderr, flush=True)
        steps += sum(run.totals.steps for run in runs if run.totals is not None)
        seconds += sum(run.seconds for run in runs)
    wall = WallClock().now() - began
    print(f"{wall:.0f} s for {steps} steps, {seconds:.0f} simulated seconds", file=sys.stderr, flush=True)
    return _table(["profile, load", *policies], rows)


def _mean_tpot_ms(run: Run) -> float:
    """Mean over requests, each one's time per token counting the same."""
    tpots = [result.tpot for result in run.results if result.tpot is not None]
    return sum(tpots) / len(tpots) * 1e3


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}" if ours and theirs else "-"


def _brief(report: PolicyReport | None) -> str:
    return "" if report is None else f"{report.slo_attainment or 0.0:.1%} / {report.goodput_tokens_per_s:.0f}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("capacity", "bound", "loads", "sensitivity", "parts", "light", "every"))
    parser.add_argument("traces", type=Path, nargs="+", metavar="TRACE")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--duration", type=float, default=math.inf, metavar="S", help="send requests for S seconds (default: all)"
    )
    parser.add_argument("--ms-scale", type=auto_or_positive, metavar="X|auto", help="multiply targets in ms (default: auto)")
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    parser.add_argument("--urgent", nargs="+", type=float, default=(0.6, 0.4, 0.2), help="capacity: shares of urgent requests")
    parser.add_argument("--start", type=float, default=1.0, help="load where searches begin, and of `sensitivity` and `every`")
    parser.add_argument("--speeds", nargs="+", type=float, default=(0.8, 1.0, 1.1, 1.2, 1.4), help="parts and light: loads")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that share the runs of a sweep")
    parser.add_argument("--seed", type=int, default=0, help="of residuals, of drafts off the path and of classes drawn anew")
    parser.add_argument("--acceptance", default="smollm2-noise-t0", help="the recording; `sensitivity` has others besides")
    parser.add_argument("--slots", type=int, default=64, metavar="N", help="most requests at once")
    parser.add_argument("--rates", nargs="+", type=float, default=(2.6, 3.4, 4.2, 4.8, 5.4), help="loads: requests per second")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if len(args.traces) > 1 and args.part != "every":
        parser.error("only `every` takes more than one trace")
    profile = profile_named(args.profile)
    benches = [
        Comparison(
            read(path),
            profile,
            args.out,
            args.duration,
            args.ms_scale,
            args.start,
            args.jobs,
            args.seed,
            args.acceptance,
            args.slots,
        )
        for path in args.traces
    ]
    bench = benches[0]
    if args.part == "capacity":
        table = capacity_part(bench, args.policies, args.urgent)
    elif args.part == "bound":
        table = bound_part(bench, args.urgent, args.start)
    elif args.part == "loads":
        table = loads_part(bench, args.policies, args.rates)
    elif args.part == "parts":
        table = parts_part(bench, args.speeds)
    elif args.part == "light":
        table = light_part(bench, args.speeds)
    elif args.part == "every":
        table = every_part(benches, args.policies, args.start)
    else:
        table = sensitivity_part(bench, args.start)
    (args.out / f"{args.part}.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
