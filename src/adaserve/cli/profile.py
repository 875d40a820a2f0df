"""Measure how long steps take on this machine: target and draft passes by rows, the cost of context, the baseline latency.

The engine does this by itself at the first start with a model and caches the result; this command measures anew and shows it.
"""

import argparse
import sys
from contextlib import closing
from pathlib import Path

from adaserve.build import load_parts
from adaserve.cli.checks import check_writable
from adaserve.cli.options import add_engine_options, engine_config
from adaserve.profile import Profile
from adaserve.tuning import machine_constants

EXAMPLES = """examples:
  adaserve profile demo
  adaserve profile ./my-model --draft ./my-draft --out profile.json
  adaserve serve ./my-model --profile profile.json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_engine_options(parser)
    parser.add_argument("--out", metavar="FILE", help="write the profile there too, for --profile and for simulate")


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, save."""
    if args.out:
        check_writable(Path(args.out))
    with closing(load_parts(engine_config(args), lambda line: print(line, file=sys.stderr, flush=True), measure=True)) as parts:
        profile, constants = parts.profile, machine_constants(parts.config, parts.profile)
    if args.out:
        profile.save(args.out)
    print(table(profile))
    print(f"budget from the curve: {constants.verify_rows} rows a verification pass, {constants.draft_rows} rows a draft pass")
    return 0


def table(profile: Profile) -> str:
    """The curves as text: time of a pass, time per row, and how it compares to one row."""
    lines = ["rows   target ms  per row  x one row    draft ms  further ms"]
    one = next(iter(profile.verify_ms_by_rows.values()))
    for rows, cost in profile.verify_ms_by_rows.items():
        drafts = [curve[rows] for curve in (profile.draft_step_ms_by_rows, profile.draft_next_ms_by_rows) if rows in curve]
        lines.append(
            f"{rows:4} {cost:11.2f} {cost / rows:8.2f} {cost / one:10.2f}" + "".join(f"{draft:12.2f}" for draft in drafts)
        )
    lines += [
        f"context: {profile.attention_ms_per_1000_context_tokens:.3f} ms per 1000 tokens (draft "
        f"{profile.draft_attention_ms_per_1000_context_tokens:.3f})",
        "where all rows but one are a prompt's: "
        + (
            ", ".join(f"{saved:.2f} ms less of {rows} rows" for rows, saved in profile.prompt_saves_ms_by_rows.items())
            or "as long"
        ),
        f"a pass after drafting: {profile.after_draft_ms:.2f} ms more",
        f"overhead: {profile.step_overhead_ms:.2f} ms a step",
        f"baseline: {profile.baseline_ms_per_token:.2f} ms per token",
    ]
    return "\n".join(lines)
