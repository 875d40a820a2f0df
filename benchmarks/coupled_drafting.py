"""Tokens a step with drafts that rank by the noise of the target's draws, and without.

    python benchmarks/coupled_drafting.py                      # temperature 1, the demo pair, the project's prompts

Both run the same requests with trees of the same depth, width and number of nodes; their tokens are the same (the law), so only
the number of steps differs. Counts, no times: the machine does not matter. By class:

    tokens a step   (tokens - first ones) / (steps in which the request took part), up to the end of its text
    best w          how often the target's draw at the root was one of the draft's w children there
    said, right     by tenths of an edge's probability: what the draft said on average, how often it came

The last line is one JSON object.
"""

import argparse
import json
from dataclasses import asdict

from adaserve.bench.drafting import EqualTrees, Yield, add_drafting_options, drafting_yield, requests_of
from adaserve.build import load_parts
from adaserve.config import EngineConfig
from adaserve.request import SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    add_drafting_options(parser, ["3x1x3", "3x3x9", "4x3x6"])
    args = parser.parse_args()
    config = EngineConfig(
        model=args.model, draft=args.draft, threads=args.threads, profile=args.profile, max_num_seqs=16, max_model_len=2048
    )
    parts = load_parts(config, print)
    sampling = SamplingParams(max_tokens=args.max_tokens, temperature=args.temperature, top_p=args.top_p)
    requests = requests_of(parts, sampling, args.per_class, args.seed)
    found: dict[str, dict[str, object]] = {}
    for tree in args.trees:
        depth, width, nodes = map(int, tree.split("x"))
        shape = EqualTrees(depth, width, nodes)
        plain, said = drafting_yield(parts, shape.policy(coupled=False), requests)
        coupled, again = drafting_yield(parts, shape.policy(coupled=True), requests)
        same = sum(said[key] == again[key] for key in said)
        print(f"depth {depth}, width {width}, {nodes} nodes: {same} of {len(said)} answers the same")
        found[tree] = {"same_answers": same, "answers": len(said)}
        for name in plain:
            print(line(name, plain[name], coupled[name]), flush=True)
            gain = coupled[name].tokens_per_step / plain[name].tokens_per_step
            found[tree][name] = {"plain": asdict(plain[name]), "coupled": asdict(coupled[name]), "gain": gain}
    settings = {"temperature": args.temperature, "top_p": args.top_p, "per_class": args.per_class, "seed": args.seed}
    print(json.dumps(settings | {"trees": found}))


def line(name: str, plain: Yield, coupled: Yield) -> str:
    gain = coupled.tokens_per_step / plain.tokens_per_step
    parts = [
        f"{y.tokens_per_step:.2f} a step, best w {y.found / max(1, y.drafting):.2f}, off by {y.error:.3f}"
        for y in (plain, coupled)
    ]
    return f"  {name:14} plain {parts[0]} | coupled {parts[1]} | x {gain:.2f}"


if __name__ == "__main__":
    main()
