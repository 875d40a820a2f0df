"""Record how often a draft model's proposals are what its target says: the acceptance that `adaserve simulate` replays.

The target answers prompts of three classes, the project's own unless a trace is named, up to --max-tokens tokens or the end of
its text. Then the draft reads the answers, and what it would have proposed at every position is written down.
"""

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from adaserve.bench.replay import prompt_tokens
from adaserve.build import Parts, load_parts
from adaserve.cli.checks import check_writable
from adaserve.cli.options import add_engine_options, engine_config
from adaserve.errors import InvalidConfig
from adaserve.executor.acceptance import RecordedOutput, Recording, join
from adaserve.executor.recorder import NoiseOf, recorded_output
from adaserve.models.noisy import noisy_draft
from adaserve.models.registry import resolve
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import make_policy
from adaserve.request import Request, SamplingParams, Targets
from adaserve.workload import DEMO_MIX, Arrival, read
from adaserve.workload.prompts import prompts

WIDTH = 8
"""Candidates kept per position: wider beams than this do not pay anywhere in the paper."""

ANY_PROFILE = Path(__file__).parent.parent / "data" / "profiles" / "h200-32b.json"
"""Nothing depends on step times here, so none are measured."""

EXAMPLES = """examples:
  adaserve record demo --out demo.npz
  adaserve record demo --draft noise:0.1 --temperature 1 --out noise.npz
  adaserve record demo --temperature 1 --coupled --out coupled.npz
  adaserve simulate trace.json --profile h200-32b --acceptance demo.npz"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_engine_options(parser)
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="of the target (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=200, metavar="N", help="longest output (default: %(default)s)")
    parser.add_argument("--prompts", metavar="TRACE", help="answer a trace's prompts instead of the project's own")
    parser.add_argument(
        "--per-class", type=int, default=40, metavar="N", help="most prompts of each class (default: %(default)s)"
    )
    parser.add_argument("--out", default="acceptance.npz", metavar="FILE", help="the recording (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Answer, record, save, and say how well the draft did."""

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if args.max_tokens < 1 or args.per_class < 1:
        raise InvalidConfig("--max-tokens and --per-class must be at least 1")
    if args.coupled and not args.temperature > 0:
        raise InvalidConfig("--coupled changes nothing at temperature 0: give a --temperature above 0")
    noise = re.fullmatch(r"noise:(\d*\.?\d+)", args.draft or "")
    config = replace(engine_config(args), profile=args.profile or str(ANY_PROFILE))
    check_writable(Path(args.out))
    with closing(load_parts(replace(config, draft="none") if noise else config, tell)) as parts:
        recording = record(args, parts, None if noise is None else float(noise[1]), tell)
    recording.save(args.out)
    print(table(recording))
    return 0


def record(args: argparse.Namespace, parts: Parts, noise: float | None, tell: Callable[[str], None]) -> Recording:
    """Answer the prompts and let the draft read the answers. noise: on a copy of the target's weights that drafts, or None."""
    target, draft = parts.models.target, parts.models.draft
    if noise is not None:
        draft = noisy_draft(resolve(args.model), target, noise, args.seed, dtype=target.embedding.dtype)
    if draft is None:
        raise InvalidConfig(f"{args.model} has no draft model: name one with --draft, or make one with --draft noise:0.1")
    requests = requests_from(args, parts)
    outputs = true_outputs(parts, requests, tell)
    tell("the draft reads them")
    recorded: dict[str, list[RecordedOutput]] = {}
    for request in requests:
        if outputs[request.id]:
            output = recorded_output(
                draft,
                request.prompt,
                outputs[request.id],
                temperature=args.temperature,
                width=WIDTH,
                vocabulary=args.draft_vocabulary or None,
                noise=NoiseOf(request.seed, request.choice) if args.coupled else None,
            )
            recorded.setdefault(str(request.slo_class), []).append(output)
    pair = f"{args.model} with {args.draft or 'its own draft'}"
    source = f"adaserve record: {args.prompts or 'prompts of the project'}, at most {args.max_tokens} tokens, seed {args.seed}"
    return join(recorded, pair=pair, temperature=args.temperature, source=source, coupled=bool(args.coupled))


def requests_from(args: argparse.Namespace, parts: Parts) -> list[Request]:
    """One request for every different prompt, at most --per-class of a class; what does not fit the context is left out."""
    requests = []
    for number, (class_name, tokens) in enumerate(_prompts(args, parts)):
        if len(tokens) + args.max_tokens <= parts.sizes.length:
            sampling = SamplingParams(max_tokens=args.max_tokens, temperature=args.temperature)
            request = Request(
                id=f"{number}",
                prompt=tokens,
                sampling=sampling,
                targets=Targets(),
                seed=args.seed + number,
                arrived=0.0,
                slo_class=class_name,
                stop_ids=parts.eos_ids,
            )
            requests.append(request)
    return requests


def _prompts(args: argparse.Namespace, parts: Parts) -> list[tuple[str, tuple[int, ...]]]:
    """Class and token ids of the prompts to answer."""
    if args.prompts:
        arrivals: Sequence[Arrival] = read(args.prompts).requests(DEMO_MIX, args.seed, math.inf).arrivals
    else:
        arrivals = [
            Arrival(0.0, text, kind.name, None, args.max_tokens, kind.chat)
            for kind in DEMO_MIX.shares
            for text in prompts(kind.name)
        ]
    count: Counter[str] = Counter()
    found = []
    for arrival in {(a.class_name, a.prompt): a for a in arrivals}.values():
        count[arrival.class_name] += 1
        if count[arrival.class_name] <= args.per_class:
            found.append((arrival.class_name, tuple(prompt_tokens(arrival, parts.tokenizer))))
    return found


def true_outputs(parts: Parts, requests: Sequence[Request], tell: Callable[[str], None]) -> dict[str, tuple[int, ...]]:
    """What the target says to every request, by id; the end of a text is one of its tokens."""
    engine = parts.engine(make_policy("continuous", Constants(verify_rows=1, draft_rows=0)))
    outputs: dict[str, tuple[int, ...]] = {request.id: () for request in requests}
    for request in requests:
        engine.add(request)
    ended = 0
    while (report := engine.step()) is not None:
        for update in report.updates:
            outputs[update.id] += update.tokens
            if update.finish is not None:
                ended += 1
                if ended % 20 == 0:
                    tell(f"{ended} of {len(requests)} prompts answered")
    return outputs


def table(recording: Recording) -> str:
    """How often the target's token was among the draft's first choices, by class."""
    lines = [f"{'class':15} {'outputs':>7} {'positions':>9}   first  best 3  best {recording.width}"]
    for name, sequences in recording.classes.items():
        positions = recording.positions(sequences)
        shares = "".join(f"{recording.coverage(name, best):8.2f}" for best in (1, 3, recording.width))
        lines.append(f"{name:15} {len(sequences):7} {positions.stop - positions.start:9}{shares}")
    return "\n".join(lines)
