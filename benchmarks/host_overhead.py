"""What deciding costs: scheduling, selection and learning as a share of a step's time, on this machine, for real.

    python benchmarks/host_overhead.py [--at-once 1 4 16] [--policy adaserve adaserve+] [--depth 2]

So many requests decode at once, all of the project's own prompts, a third each with targets of 1.2 and 3 baselines a token and
without one, and ignore the ends of their texts. Policies take turns, `--repeats` times. Steps that read prompts are passed over,
and the first ones of every turn. `schedule` is all that the scheduler does before and after a step, `select` the selection alone,
`learn` what the latency model and the policy learn from a step, on a CPU at its end. Medians over steps: somebody else's work on
the machine is none of the policy's. The last column is the share of the steps' time taken together, where what is done every
sixteenth step (refits of what was learned) counts in full, and whatever else happened on the machine too.

--depth fixes how deep all draft, for a policy that would not draft here (what it selects from is then there to be measured).

The last line is one JSON object.
"""

import argparse
import json
from dataclasses import replace
from statistics import median

from adaserve.bench.drafting import requests_of
from adaserve.build import Parts, load_parts
from adaserve.config import EngineConfig
from adaserve.request import Request, SamplingParams, Targets
from adaserve.step import PhaseTimes

WARM = 10
"""Steps of a turn that are passed over."""

TARGETS = (1.2, 3.0, None)
"""Baselines a token."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--draft", default="demo")
    parser.add_argument("--policy", nargs="+", default=["adaserve", "adaserve+"])
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--profile", help="measured step times")
    args = parser.parse_args()
    most = max(args.at_once)
    config = EngineConfig(
        model=args.model,
        draft=args.draft,
        threads=args.threads,
        profile=args.profile,
        depth=args.depth,
        max_num_seqs=most,
        max_model_len=2048,
    )
    parts = load_parts(config, print)
    sampling = SamplingParams(args.max_tokens, args.temperature, ignore_eos=True)
    baseline = parts.profile.baseline_ms_per_token / 1e3
    asked = [
        replace(request, stop_ids=(), targets=Targets(times and times * baseline))
        for request, times in zip(requests_of(parts, sampling, -(-most // 3)), TARGETS * most, strict=False)
    ]
    found: dict[str, list[tuple[PhaseTimes, float]]] = {}
    for repeat in range(args.repeats):
        for count in args.at_once:
            for policy in args.policy:
                found.setdefault(f"{policy} at {count}", []).extend(timed(parts, policy, asked[:count], f"{repeat}"))
    results = {}
    columns = (
        "policy, requests",
        "steps",
        "step, ms",
        "schedule, us",
        "select, us",
        "learn, us",
        "select and learn",
        "share",
        "of all",
    )
    print(f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", sep="\n")
    for name, steps in found.items():
        numbers = {
            "step": median([t.total + learn for t, learn in steps]),
            "schedule": median([t.schedule for t, _ in steps]),
            "select": median([t.select for t, _ in steps]),
            "learn": median([learn for _, learn in steps]),
            "select_and_learn": median([(t.select + learn) / (t.total + learn) for t, learn in steps]),
            "share": median([(t.schedule + t.select + learn) / (t.total + learn) for t, learn in steps]),
            "of_all": sum(t.schedule + t.select + learn for t, learn in steps) / sum(t.total + learn for t, learn in steps),
        }
        results[name] = {"steps": len(steps), **numbers}
        times = [f"{numbers['step'] * 1e3:.2f}", *(f"{numbers[phase] * 1e6:.0f}" for phase in ("schedule", "select", "learn"))]
        shares = [f"{numbers[share]:.2%}" for share in ("select_and_learn", "share", "of_all")]
        print(f"| {' | '.join([name, str(len(steps)), *times, *shares])} |")
    print(json.dumps(results))


def timed(parts: Parts, policy: str, requests: list[Request], turn: str) -> list[tuple[PhaseTimes, float]]:
    """Times of the steps in which all of these requests decode and nothing else happens, and seconds of learning from each."""
    engine = parts.engine(parts.policy(policy))
    for request in requests:
        engine.add(replace(request, id=f"{request.id} of {turn}", arrived=parts.clock.now()))
    seen = []
    while (report := engine.step()) is not None:
        outcome, begin = report.outcome, parts.clock.now()
        engine.learn()
        learn = parts.clock.now() - begin
        if outcome is not None and not outcome.plan.chunks and len(outcome.plan.decoding) == len(requests):
            seen.append((outcome.times, learn))
    return seen[WARM:]


if __name__ == "__main__":
    main()
