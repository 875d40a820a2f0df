"""Tokens a step with a draft model, with look-up of the request's own text, and with both in one tree.

    python benchmarks/draft_sources.py                         # temperature 0, the demo pair, the project's prompts

All run the same requests with trees of the same depth and at most the same number of nodes; their tokens are the same (the law).
Counts, no times: the machine does not matter. By class and source:

    tokens a step   (tokens - first ones) / (steps in which the request took part), up to the end of its text
    nodes           verified in a step, on average: look-up alone has one chain at most, and often none
    said, right     of nodes put to the test: what was said on average, how often it came; m: of the model alone, n: of look-up
                    alone, b: of both

The last line is one JSON object.
"""

import argparse
import json
from dataclasses import asdict, replace

from adaserve.bench.drafting import EqualTrees, Yield, add_drafting_options, drafting_yield, requests_of
from adaserve.build import load_parts
from adaserve.config import EngineConfig
from adaserve.request import SamplingParams
from adaserve.tree import Source

NAMES = {Source.MODEL: "m", Source.NGRAM: "n", Source.BOTH: "b"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", default="demo", help="the draft model (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0)
    add_drafting_options(parser, ["3x1x3", "4x2x4", "4x2x8"])
    args = parser.parse_args()
    base = EngineConfig(model=args.model, threads=args.threads, profile=args.profile, max_num_seqs=16, max_model_len=2048)
    sampling = SamplingParams(max_tokens=args.max_tokens, temperature=args.temperature)
    found: dict[str, dict[str, dict[str, object]]] = {tree: {} for tree in args.trees}
    said: dict[str, list[int]] = {}
    for draft in (args.draft, "ngram", f"{args.draft}+ngram"):
        parts = load_parts(replace(base, draft=draft), lambda line: None)
        requests = requests_of(parts, sampling, args.per_class, args.seed)
        for tree in args.trees:
            depth, width, nodes = map(int, tree.split("x"))
            policy = EqualTrees(depth, width, nodes).policy(coupled=args.temperature > 0)
            by_class, tokens = drafting_yield(parts, policy, requests)
            said = said or tokens
            same = sum(said[key] == tokens[key] for key in said)
            print(f"{draft}, depth {depth}, width {width}, {nodes} nodes: {same} of {len(said)} answers the same")
            for name, one in by_class.items():
                print(line(name, one), flush=True)
            found[tree][draft] = {"same_answers": same} | {name: asdict(one) for name, one in by_class.items()}
    settings = {"temperature": args.temperature, "per_class": args.per_class, "seed": args.seed}
    print(json.dumps(settings | {"trees": found}))


def line(name: str, one: Yield) -> str:
    sources = [
        f"{NAMES[Source(s)]} {one.hoped[s] / tried:.2f} {one.accepted[s] / tried:.2f} ({tried})"
        for s, tried in sorted(one.tried.items())
    ]
    nodes = one.nodes / max(1, one.steps)
    return f"  {name:14} {one.tokens_per_step:.3f} a step, {nodes:.1f} nodes; said, right: {', '.join(sources)}"


if __name__ == "__main__":
    main()
