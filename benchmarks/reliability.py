"""How often drafted nodes come true, against what is said of them: the draft, and the calibration of `adaserve+`.

    python benchmarks/reliability.py --out docs/results/reliability.png      # the demo pair with look-up beside it

`adaserve+` answers half of the project's prompts and learns; then it answers the other half and learns nothing any more. There
every verified node whose parent was accepted is counted, by source, by temperature, and by tenths of what was said of it:

    draft     the draft's own probability
    start     a calibration that has seen nothing
    learned   one that has seen the first half, at this temperature
    mixed     one that has seen the first half at temperatures 0 and 1 at once, and tells them apart
    other     one that has seen it at the other temperature alone: where a new temperature starts

Trees have a fixed shape and the price of nodes is left out (adaserve+:no-priced), so nothing here depends on how long anything
takes. The last line is one JSON object.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from adaserve.bench.drafting import add_drafting_options, drafting_yield, requests_of
from adaserve.bench.reliability import Bins, Watch
from adaserve.build import Parts, load_parts
from adaserve.config import EngineConfig
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import Overrides, make_policy
from adaserve.policy.plus.calibration import Calibration
from adaserve.policy.plus.parts import LearningConstants
from adaserve.policy.policy import Policy
from adaserve.request import Request, SamplingParams
from adaserve.step import Drafted
from adaserve.tree import Source

SLOTS = 8
LEAST = 30
"""Nodes in a tenth from which on it is shown."""

SOURCES = {Source.MODEL: "draft model", Source.NGRAM: "look-up", Source.BOTH: "both"}
Found = dict[str, dict[Source, dict[str, Bins]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", default="demo+ngram")
    add_drafting_options(parser, ["3x3x6"])
    parser.add_argument("--out", type=Path, help="the plot")
    args = parser.parse_args()
    config = EngineConfig(
        model=args.model, draft=args.draft, threads=args.threads, profile=args.profile, max_num_seqs=SLOTS, max_model_len=2048
    )
    parts = load_parts(config, print)
    depth, width, nodes = map(int, args.trees[0].split("x"))
    shape = Overrides(budget=SLOTS * (1 + nodes), depth=depth, width=width)

    def policy() -> Policy:
        return make_policy("adaserve+:no-priced", Constants(verify_rows=1, draft_rows=1, prompt_rows=64), shape)

    def requests(temperature: float) -> tuple[list[Request], list[Request]]:
        made = requests_of(parts, SamplingParams(args.max_tokens, temperature), args.per_class, args.seed)
        return made[::2], made[1::2]

    taught, asked = zip(*map(requests, (0.0, 1.0)), strict=True)
    both = [replace(request, id=f"{request.id} at {request.sampling.temperature:g}") for half in taught for request in half]
    mixed = learned_from(parts, policy(), both)
    learned = [learned_from(parts, policy(), teaching) for teaching in taught]
    found: Found = {}
    for mine, other, asking in zip(learned, reversed(learned), asked, strict=True):
        found[f"{asking[0].sampling.temperature:g}"] = watched(parts, policy(), mine, mixed, other, asking)
    print(table(found))
    if args.out is not None:
        draw(found, args.out)
    settings = {"draft": args.draft, "trees": args.trees[0], "per_class": args.per_class, "seed": args.seed}
    every = {t: {SOURCES[s]: {k: asdict(b) for k, b in named.items()} for s, named in one.items()} for t, one in found.items()}
    print(json.dumps(settings | {"by_temperature": every}))


def learned_from(parts: Parts, policy: Policy, requests: Sequence[Request]) -> Calibration:
    """What the policy has learned when these requests have ended."""
    drafting_yield(parts, policy, requests)
    assert isinstance(policy.memory, Calibration)
    return policy.memory


def watched(
    parts: Parts, policy: Policy, learned: Calibration, mixed: Calibration, other: Calibration, requests: Sequence[Request]
) -> dict[Source, dict[str, Bins]]:
    """Answer these requests with what was learned, learning nothing; which nodes came, by source and by who said what.

    All requests draw at one temperature.
    """
    assert policy.memory is not None
    policy.memory.recall(learned.remembered())

    def draft(drafted: Drafted) -> Sequence[float]:
        return drafted.edge_prob

    def said_by(calibration: Calibration) -> Callable[[Drafted], Sequence[float]]:
        return partial(calibration.edges, temperature=[requests[0].sampling.temperature] * SLOTS)

    start = Calibration(LearningConstants(), policy.coupled)
    watch = Watch(
        {
            "draft": draft,
            "start": said_by(start),
            "learned": said_by(learned),
            "mixed": said_by(mixed),
            "other": said_by(other),
        }
    )
    drafting_yield(parts, replace(policy, learner=watch), requests)
    return watch.bins


def table(found: Found) -> str:
    """Expected calibration errors."""
    lines = ["| temperature | source | nodes | accepted | draft | start | learned | mixed | other |", "|---" * 9 + "|"]
    for temperature, by_source in found.items():
        for source, named in by_source.items():
            count, right = sum(named["draft"].count), sum(named["draft"].right)
            if count:
                errors = " | ".join(f"{bins.error:.3f}" for bins in named.values())
                lines.append(f"| {temperature} | {SOURCES[source]} | {count} | {right / count:.2f} | {errors} |")
    return "\n".join(lines)


def draw(found: Found, path: Path) -> None:
    """One panel for each temperature and source, a line for everybody who said something."""
    figure = Figure(figsize=(9.6, 6.4), layout="tight")
    panels = figure.subplots(len(found), len(SOURCES), sharex=True, sharey=True)
    for row, (temperature, by_source) in zip(panels, found.items(), strict=True):
        for axes, (source, named) in zip(row, by_source.items(), strict=True):
            axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
            for (name, bins), marker in zip(named.items(), "osD^v", strict=True):
                points = bins.points(LEAST)
                axes.plot([p[0] for p in points], [p[1] for p in points], marker=marker, markersize=4, label=name)
            axes.set_title(f"{SOURCES[source]}, temperature {temperature}", fontsize=9)
            axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("said")
    for row in panels:
        row[0].set_ylabel("accepted")
    panels[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
