"""The demo's command line."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from adaserve.bench.numbers import positive

PILOT_SHARE = 0.4
"""Of what the pilot serves without a pause: requests that come by chance come in bunches, and prompts of others cost time too."""
PILOT_STRETCH = 1.35
"""Baselines that a token of plain decoding takes at the pilot's load: too slow for urgent requests, at 1.2, but not by far."""
PILOT_LEAST = 2


@dataclass(frozen=True)
class Options:
    """What to run. rate: requests per second, None to find it by a pilot. cv: burstiness of arrivals, 1 is Poisson.

    running: how many requests the pilot keeps in flight, None for what the machine's curves say.
    serve: further options of every `adaserve serve`.
    """

    policies: tuple[str, ...]
    duration: float
    rate: float | None
    repeats: int
    seed: int
    cv: float
    as_json: bool
    running: int | None = None
    serve: tuple[str, ...] = ()


def parse(arguments: Sequence[str] | None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m adaserve.bench.demo",
        description="Serve the demo pair under several policies, send each the same mixed requests, compare.",
        epilog="Example: python -m adaserve.bench.demo --duration 30 --policies continuous,adaserve+ --repeats 3",
    )
    parser.add_argument("--policies", default="continuous,spec:2,adaserve+", help="comma-separated (default: %(default)s)")
    parser.add_argument("--duration", type=positive, default=60.0, help="seconds of requests for each run (default: %(default)g)")
    parser.add_argument("--rate", type=positive, help="requests per second (default: found by a pilot)")
    parser.add_argument(
        "--running",
        type=int,
        help=f"without --rate: what the pilot keeps running (default: so many that a token takes {PILOT_STRETCH:g} baselines)",
    )
    parser.add_argument("--repeats", type=int, default=1, help="runs of each policy; tables show medians (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and prompts (default: %(default)s)")
    parser.add_argument("--cv", type=positive, default=1.0, help="burstiness of arrivals, 1 is Poisson (default: %(default)g)")
    parser.add_argument("--serve", type=shlex.split, default=[], metavar="OPTIONS", help="further options of `adaserve serve`")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout, everything else on stderr")
    given = parser.parse_args(arguments)
    policies = tuple(name.strip() for name in given.policies.split(",") if name.strip())
    if not policies or given.repeats < 1 or (given.running is not None and given.running < 1) or given.seed < 0:
        parser.error("there must be at least one policy, one run and one request running, and the seed must not be negative")
    return Options(
        policies, given.duration, given.rate, given.repeats, given.seed, given.cv, given.json, given.running, tuple(given.serve)
    )


def pilot_running(shared: Sequence[float], baseline: float) -> int:
    """How many requests the pilot keeps in flight: the most at whom plain decoding takes PILOT_STRETCH baselines, but a few.

    shared: seconds a token of each of 1, 2, ... requests at once.
    """
    fitting = sum(seconds <= PILOT_STRETCH * baseline for seconds in shared)
    return max(fitting, PILOT_LEAST)
