"""Find the constants of the `adaserve` policy for a model and a machine: budgets B1 and B2, c1, n_max, depth, width, prompt rows.

A search by real replays of a mixed workload; takes some minutes. The engine uses the result from then on with these models on
this machine, or through --tuning.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from adaserve.bench.replay import replay, to_requests
from adaserve.bench.tune import Trial, grid, halving, sample
from adaserve.build import Parts, load_parts
from adaserve.cli.checks import check_writable
from adaserve.cli.options import add_engine_options, engine_config
from adaserve.errors import InvalidConfig
from adaserve.pair import tuning_path
from adaserve.policy.adaptive import Constants
from adaserve.request import Request
from adaserve.tuning import machine_constants
from adaserve.workload import DEMO_MIX, generate

RUNNING = 10.0

EXAMPLES = """examples:
  adaserve tune demo --out tuning.json
  adaserve serve demo --tuning tuning.json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_engine_options(parser)
    parser.add_argument("--out", metavar="FILE", help="where the constants go (default: the cache, where the engine looks)")
    parser.add_argument("--candidates", type=int, default=24, metavar="N", help="settings to try (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, metavar="S", help="length of a first replay (default: %(default)s)")
    parser.add_argument(
        "--rate",
        type=float,
        metavar="R",
        help=f"requests per second (default: as many as keep {RUNNING:g} running under `continuous`)",
    )


def run(args: argparse.Namespace) -> int:
    """Search, print the trials as they come, save the best."""

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if args.candidates < 1 or args.seconds <= 0:
        raise InvalidConfig("--candidates and --seconds must be positive")
    out = Path(args.out) if args.out else tuning_path(engine_config(args))
    check_writable(out)
    with closing(load_parts(engine_config(args), tell)) as parts:
        best, record = search(args, parts, tell)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{out}: {brief(best)}")
    return 0


def search(args: argparse.Namespace, parts: Parts, tell: Callable[[str], None]) -> tuple[Constants, dict[str, object]]:
    """The best constants found, and the record of the search: its load, the machine's profile, every trial."""
    baseline = parts.profile.baseline_ms_per_token / 1e3

    def workload(number: int, seconds: float, rate: float) -> Sequence[tuple[float, Request]]:
        drawn = generate(DEMO_MIX, rate, seconds, np.random.default_rng([args.seed, number]))
        timed = to_requests(drawn, parts.tokenizer, baseline, parts.eos_ids, temperature=0.0, seed=args.seed)
        return [(at, r) for at, r in timed if len(r.prompt) + r.sampling.max_tokens <= parts.sizes.length]

    rate = args.rate
    if rate is None:
        tell(f"looking for the load at which `continuous` runs about {RUNNING:g} requests")
        rate = 1.0
        for attempt in range(3):
            played = replay(parts.engine(parts.policy("continuous")), workload(100 + attempt, 2 * args.seconds, rate))
            rate *= min(4.0, max(0.25, RUNNING / max(played.mean_running, 0.1))) ** 0.7
    tell(f"load: {rate:.2f} requests per second")

    base = machine_constants(parts.config, parts.profile)
    candidates = sample(grid(base, parts.profile), args.candidates, random.Random(args.seed))

    def show(trial: Trial, left: int) -> None:
        score = trial.score
        found = f"attainment {score.attainment:6.1%}, {score.goodput:6.1f} tokens/s"
        tell(f"round {trial.round + 1}, {left:2} left: {found}  {brief(trial.constants)}")

    best, trials = halving(
        candidates,
        lambda constants: parts.engine(parts.policy("adaserve", constants)),
        lambda number, seconds: workload(number, seconds, rate),
        args.seconds,
        show,
    )
    return best, {
        "constants": vars(best),
        "rate": rate,
        "profile": parts.profile.to_json(),
        "trials": [{"round": t.round, "constants": vars(t.constants), **vars(t.score)} for t in trials],
    }


def brief(c: Constants) -> str:
    """The constants in a line, in the paper's letters."""
    return (
        f"B1={c.verify_rows} B2={c.draft_rows} c1={c.depth_offset} c2={c.width_offset} d={c.depth_min}..{c.depth_max} "
        f"w<={c.width_max} n_max={c.per_request} prompt rows={c.prompt_rows}"
    )
