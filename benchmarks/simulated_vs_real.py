"""How far `adaserve simulate` is from real runs on this machine.

    adaserve bench TRACE ... --policy continuous spec:2 adaserve --sweep seed=0,1 --record --profile profile.json --out real
    python benchmarks/simulated_vs_real.py real/recorded --profile profile.json

The first command runs every policy twice (nothing of a trace with texts depends on the seed) and writes each run down: requests,
outputs, and the shape and seconds of every step. The second simulates the same requests with the same policies:

    time         the profile's curves, bent by the median surprise at each number of rows, times the measured residuals, in their
                 order, from a random step on: surprises and residuals of the policy's *other* run, so that no run is judged by
                 itself; the scheduler believes the profile as it was measured
    acceptance   the draft model reads the run's own outputs (or --acceptance: another recording)
    prompts      token by token as they were, so that prefixes are reused where they were

What is left is the simulator's own error: residuals that belong to a moment, which replaying them at others blurs; the order of
two arrivals within a step. Aim: attainment within 3 points or twice the gap between the real runs, TPOT p50 within 5%. The last
line is one JSON object.
"""

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from adaserve.bench.fidelity import Fidelity, acceptance, fidelity
from adaserve.bench.recorded_run import RecordedRun
from adaserve.build import load_parts
from adaserve.cli.options import add_engine_options, engine_config
from adaserve.executor.shipped import recording_named
from adaserve.profile import Profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recorded", type=Path, help="folder of recorded runs")
    parser.add_argument("--acceptance", metavar="FILE|NAME", help="another recording (default: from the runs' own outputs)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="simulations of each run (default: %(default)s)")
    add_engine_options(parser, model=False)
    args = parser.parse_args()
    args.model = "demo"
    if args.profile is None:
        parser.error("name the --profile that the runs had")
    runs: dict[str, list[RecordedRun]] = {}
    for path in sorted(args.recorded.glob("*.json")):
        run = RecordedRun.load(path)
        runs.setdefault(run.policy, []).append(run)
    if not runs:
        parser.error(f"there are no recorded runs in {args.recorded}")
    parts = load_parts(engine_config(args), print)
    first = next(iter(runs.values()))[0]
    temperature = first.timed[0][1].sampling.temperature
    if args.acceptance is not None:
        recording = recording_named(args.acceptance, 0)
    else:
        assert parts.models.draft is not None, "a recording is of a draft model"
        recording = acceptance(
            first, parts.models.draft, pair=args.model, temperature=temperature, vocabulary=parts.models.draft_vocabulary
        )
    profile = Profile.load(args.profile)
    found = []
    for name, mine in runs.items():
        one = fidelity(mine, partial(parts.policy, name), profile, recording, range(args.seeds))
        ratios = sorted(ratio for run in mine for ratio in run.residuals(profile))
        print(line(one), f"  residuals: median {ratios[len(ratios) // 2]:.2f}", flush=True)
        found.append(one)
    print(json.dumps({"acceptance": recording.source, "seeds": args.seeds, "policies": [as_object(one) for one in found]}))


def line(one: Fidelity) -> str:
    real, simulated = (
        ", ".join(f"{f.attainment:.1%} {f.tpot_p50_ms:.1f} ms" for f in figures) for figures in (one.real, one.simulated)
    )
    errors = ", ".join(f"{error * 100:+.1f}" for error in one.attainment_errors)
    return (
        f"{one.policy:12} real {real}; simulated {simulated}; attainment {errors} points (gap {one.attainment_gap * 100:.1f}), "
        f"TPOT p50 {one.tpot_error:+.1%}: {'within' if one.within else 'OUTSIDE'}"
    )


def as_object(one: Fidelity) -> dict[str, object]:
    errors = {
        "attainment_errors": one.attainment_errors,
        "attainment_gap": one.attainment_gap,
        "tpot_p50_errors": one.tpot_errors,
    }
    return asdict(one) | errors | {"within": one.within}


if __name__ == "__main__":
    main()
