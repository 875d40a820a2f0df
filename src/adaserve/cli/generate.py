"""Continue prompts offline: texts to stdout in the prompts' order, progress and the SLO report to stderr."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from adaserve.cli.checks import check_engine
from adaserve.cli.options import add_engine_options, engine_config
from adaserve.request import SLO, SamplingParams

if TYPE_CHECKING:
    from adaserve.llm import Generation
    from adaserve.metrics import RequestResult

EXAMPLES = """examples:
  adaserve generate --prompt "def fibonacci(n):"
  adaserve generate demo --prompt "def add(a, b):" --prompt "The sea" --max-tokens 32 --slo tpot:50,ttft:500
  adaserve generate ./model --draft ngram --policy spec:2 --temperature 0.7 --seed 1 --prompt "Hello" --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `adaserve generate`."""
    add_engine_options(parser)
    group = parser.add_argument_group("generation")
    group.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="text to continue; repeatable")
    group.add_argument("--max-tokens", type=int, default=64, metavar="N", help="most tokens a prompt (default: %(default)s)")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: %(default)s)")
    group.add_argument("--slo", default="", metavar="tpot:50,ttft:500", help="targets in ms, or tpot:1.2x times the baseline")
    group.add_argument("--json", action="store_true", help="print one object with texts and report to stdout")


def run(args: argparse.Namespace) -> int:
    """Run `adaserve generate`. `--seed` seeds the sampling too."""
    from adaserve.server.slo import parse_slo

    slo = parse_slo(args.slo) if args.slo else SLO()
    sampling = SamplingParams(max_tokens=args.max_tokens, temperature=args.temperature, seed=args.seed)
    config = engine_config(args)
    check_engine(config)
    from adaserve.llm import LLM

    options = {name: value for name, value in vars(config).items() if name != "model"}
    llm = LLM(config.model, progress=lambda line: print(line, file=sys.stderr, flush=True), **options)
    generations = llm.generate(args.prompt, sampling, slo)
    llm.close()
    if args.json:
        print(json.dumps(as_object(config.model, generations)))
        return 0
    for generation in generations:
        print(generation.text, flush=True)
    print(report(generations), file=sys.stderr)
    return 0


def as_object(model: str, generations: "list[Generation]") -> dict[str, object]:
    """Everything as one JSON object."""
    return {
        "model": model,
        "outputs": [
            {
                "prompt": generation.prompt,
                "text": generation.text,
                "finish_reason": generation.outputs[0].finish_reason,
                "token_ids": list(generation.outputs[0].token_ids),
                "slo": fate(generation.outputs[0].result),
            }
            for generation in generations
        ],
    }


def fate(result: "RequestResult") -> dict[str, object]:
    """How one request fared, in milliseconds. `met` is null when no target was stated."""
    return {
        "met": result.attained,
        "tpot_ms": milliseconds(result.tpot),
        "ttft_ms": milliseconds(result.ttft),
        "longest_gap_ms": milliseconds(result.longest_gap),
        "targets": {"tpot_ms": milliseconds(result.targets.tpot), "ttft_ms": milliseconds(result.targets.ttft)},
        "prompt_tokens": result.prompt_tokens,
        "output_tokens": result.output_tokens,
        "steps": result.steps,
        "drafted": result.drafted,
        "accepted": result.accepted,
    }


def milliseconds(seconds: float | None) -> float | None:
    """Seconds as rounded milliseconds."""
    return None if seconds is None else round(seconds * 1e3, 3)


def report(generations: "list[Generation]") -> str:
    """The SLO report as a table, a line a prompt."""
    words = {True: "met", False: "missed", None: "no target"}
    lines = ["prompt tokens   TPOT ms    target   TTFT ms    target  drafted accepted  SLO"]
    for number, generation in enumerate(generations):
        result = generation.outputs[0].result
        times = [result.tpot, result.targets.tpot, result.ttft, result.targets.ttft]
        cells = " ".join("        -" if value is None else f"{value * 1e3:9.1f}" for value in times)
        counts = f"{result.drafted:8} {result.accepted:8}"
        lines.append(f"{number:6} {result.output_tokens:6} {cells} {counts}  {words[result.attained]}")
    return "\n".join(lines)
