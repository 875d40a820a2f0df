"""Tokens a step with look-up of the request's own text, and of what its tenant said before, where prompts come again.

    python benchmarks/tenant_lookup.py                         # temperature 0, the demo pair
    python benchmarks/tenant_lookup.py --sizes 1-4 2-4 3-6     # other sizes of the n-grams that are found in earlier texts

Every setting is a list of requests of one tenant, the first half of which is like the second:

    articles    the same article is summarised, then its facts are listed
    code        the same function is to be written out with comments, then with type hints
    repeats     the same chat question is asked again, at temperature 0: the same answer
    retries     the same chat question is asked again, at temperature 0.7 with another seed
    nothing     the demo's prompts, none of which comes again: what looking there in vain does

Counts, no times: the machine does not matter. Tokens a step are (tokens - first ones) / (steps in which a request took part), by
half, and nodes are those verified; how often is look-up right: of the nodes that it alone proposed and that were put to the test.
Look-up alone, then beside the draft model. The tokens are the same in every run (the law), or it ends. The last line is one JSON
object.
"""

import argparse
import colorsys
import difflib
import heapq
import inspect
import json
import shlex
import statistics
import string
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from unittest.mock import patch

from adaserve.bench.drafting import EqualTrees, Yield, drafting_yield
from adaserve.build import Parts, load_parts
from adaserve.config import EngineConfig
from adaserve.models.tokenizer import Tokenizer
from adaserve.request import Request, SamplingParams, Targets
from adaserve.speculation.ngram import NgramDrafter
from adaserve.speculation.recall import TenantMemories
from adaserve.tree import Source
from adaserve.workload.prompts import prompts

FUNCTIONS: tuple[Callable[..., object], ...] = (
    colorsys.hls_to_rgb, colorsys.rgb_to_hls, difflib.get_close_matches, heapq.merge, heapq.nsmallest, shlex.join, shlex.quote,
    statistics.mean, statistics.median, statistics.mode, string.capwords, textwrap.indent,
)  # fmt: skip


def pairs(setting: str) -> tuple[list[str], list[str]]:
    """What is asked at first, and what later."""
    if setting == "articles":
        first = list(prompts("summarization"))
        return first, [f"List the facts of the following article.\n\n{text.split(chr(10) * 2, 1)[1]}" for text in first]
    if setting == "code":
        code = [textwrap.dedent(inspect.getsource(function)) for function in FUNCTIONS]
        asked = "Write out this Python function with"
        return [f"{asked} comments.\n\n{text}" for text in code], [f"{asked} type hints.\n\n{text}" for text in code]
    if setting in ("repeats", "retries"):
        return list(prompts("chat")[:20]), list(prompts("chat")[:20])
    mixed = [text for trio in zip(prompts("coding"), prompts("chat"), prompts("summarization"), strict=False) for text in trio]
    return mixed[:20], mixed[20:40]


def requests_of(setting: str, tokenizer: Tokenizer, eos: tuple[int, ...], max_tokens: int) -> list[Request]:
    """The requests of a setting; their class says in which half they are."""
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.7 if setting == "retries" else 0.0)
    return [
        Request(
            id=f"{half} {number}",
            prompt=tuple(tokenizer.chat([{"role": "user", "content": text}])),
            sampling=sampling,
            targets=Targets(),
            seed=1000 * (half == "again") + number,
            arrived=0.0,
            slo_class=half,
            stop_ids=eos,
        )
        for half, texts in zip(("first", "again"), pairs(setting), strict=True)
        for number, text in enumerate(texts)
    ]


@contextmanager
def loaded(config: EngineConfig, sizes: tuple[int, int] | None) -> Iterator[Parts]:
    """An engine's parts; sizes: of the n-grams found in earlier texts, shortest and longest."""
    memories = TenantMemories if sizes is None else partial(TenantMemories, shortest=sizes[0], longest=sizes[1])
    drafter = partial(NgramDrafter, longest=max(4, sizes[1] if sizes else 0))
    with patch("adaserve.assembly.TenantMemories", memories), patch("adaserve.assembly.NgramDrafter", drafter):
        parts = load_parts(config, lambda line: None)
    yield parts
    parts.close()


def counted(one: Yield) -> dict[str, float]:
    """What is told of the requests of one half."""
    alone = int(Source.NGRAM)
    return {
        "tokens_per_step": one.tokens_per_step,
        "nodes_per_step": one.nodes / max(1, one.steps),
        "lookup_tried": one.tried.get(alone, 0),
        "lookup_right": one.accepted.get(alone, 0) / max(1, one.tried.get(alone, 0)),
    }


def sizes_of(text: str) -> tuple[int, int]:
    """Shortest and longest of `3-4`."""
    shortest, longest = map(int, text.split("-"))
    return shortest, longest


def line(half: str, one: dict[str, float]) -> str:
    counts = f"{one['nodes_per_step']:.1f} nodes, look-up right {one['lookup_right']:.2f} ({one['lookup_tried']})"
    return f"| {half} {one['tokens_per_step']:.3f} a step, {counts}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--drafts", nargs="+", default=["ngram", "demo+ngram"])
    parser.add_argument("--settings", nargs="+", default=["articles", "code", "repeats", "retries", "nothing"])
    parser.add_argument("--sizes", nargs="+", default=["3-4"], help="of n-grams found in earlier texts (default: %(default)s)")
    parser.add_argument("--tree", default="4x2x4", help="depth x width x nodes a request (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=4, help="requests at once (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--profile", help="measured step times; nothing counted here depends on them")
    args = parser.parse_args()
    base = EngineConfig(model=args.model, threads=args.threads, profile=args.profile, max_num_seqs=args.slots, max_model_len=2048)
    depth, width, nodes = map(int, args.tree.split("x"))
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    said: dict[str, dict[str, list[int]]] = {}
    for draft in args.drafts:
        for where in ("own", *args.sizes):
            sizes = None if where == "own" else sizes_of(where)
            config = replace(base, draft=draft, lookup="own" if sizes is None else "tenant")
            with loaded(config, sizes) as parts:
                for setting in args.settings:
                    requests = requests_of(setting, parts.tokenizer, parts.eos_ids, args.max_tokens)
                    policy = EqualTrees(depth, width, nodes).policy(coupled=setting == "retries")
                    by_half, tokens = drafting_yield(parts, policy, requests)
                    if said.setdefault(setting, tokens) != tokens:
                        raise SystemExit(f"{setting}: {draft}, {where} says something else than the first")
                    one = {half: counted(each) for half, each in by_half.items()}
                    found.setdefault(setting, {})[f"{draft}, {where}"] = one
                    print(f"{setting:10} {draft:12} {where:5}", *(line(half, each) for half, each in one.items()), flush=True)
    print(json.dumps({"tree": args.tree, "slots": args.slots, "max_tokens": args.max_tokens, "settings": found}))


if __name__ == "__main__":
    main()
