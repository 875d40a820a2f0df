"""Train a draft model for a target: a few of its layers, taught by the target on text that it writes itself.

Several GPUs: torchrun --nproc-per-node N -m adaserve.cli.main distill ... An interrupted run continues when started again with
the same options. The folder written holds a model for any engine, `layers/int8.safetensors` for ours, and a model card.
"""

import argparse
import json
import sys
from pathlib import Path

EXAMPLES = """examples:
  adaserve distill demo --out draft --write 200000 --steps 200
  adaserve distill demo --out draft --device cuda --writer batch --writer-tokens 3e6 --write 15e6 --minutes 3.5 --rate 2e-3
  adaserve distill ./my-model --layers 2 --prompts prompts.jsonl --texts articles.jsonl --steps 1000 --out my-draft
  adaserve serve ./my-model --draft my-draft
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `adaserve distill`."""
    parser.add_argument("model", metavar="MODEL", help="a folder or hub id in Hugging Face layout, a .gguf file, or a known name")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; holds the checkpoint too")
    parser.add_argument("--layers", type=int, default=4, metavar="N", help="layers of the draft (default: %(default)s)")
    parser.add_argument("--init", metavar="DRAFT", help="begin with this draft instead of the target's own layers")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything drawn (default: %(default)s)")
    texts = parser.add_argument_group("texts")
    texts.add_argument("--write", type=float, default=0, metavar="N", help="tokens that the target writes: code, chat, articles")
    texts.add_argument("--prompts", type=Path, action="append", default=[], metavar="FILE", help="JSONL of prompts to answer")
    texts.add_argument(
        "--texts", type=Path, action="append", default=[], metavar="FILE", help="JSONL of text or tokens; repeatable"
    )
    texts.add_argument("--length", type=int, default=448, metavar="N", help="tokens of a row (default: %(default)s)")
    texts.add_argument("--long", type=int, default=1152, metavar="N", help="of a row with a document (default: %(default)s)")
    texts.add_argument(
        "--writer",
        choices=("engine", "batch"),
        default="engine",
        help="who writes: our engine, or thousands of rows in lockstep, for GPUs (default: %(default)s)",
    )
    texts.add_argument(
        "--writer-tokens", type=float, default=1 << 17, metavar="N", help="of the rows that the batch writer plays at once"
    )
    texts.add_argument("--library", type=Path, metavar="DIR", help="folder of Python files (default: Python's own library)")
    texts.add_argument("--save-texts", type=Path, metavar="FILE", help="keep what was written, for --texts")
    training = parser.add_argument_group("training")
    training.add_argument("--steps", type=int, metavar="N", help="optimizer steps")
    training.add_argument("--minutes", type=float, metavar="M", help="time for training; the first end of the two counts")
    training.add_argument("--batch-tokens", type=float, default=65536, metavar="N", help="per step (default: %(default)s)")
    training.add_argument(
        "--micro-tokens", type=float, default=32768, metavar="N", help="per device at once (default: %(default)s)"
    )
    training.add_argument("--rate", type=float, default=1e-3, metavar="R", help="peak learning rate (default: %(default)s)")
    training.add_argument("--optimizer", choices=("muon", "adamw"), default="muon", help="of the matrices (default: %(default)s)")
    training.add_argument("--greedy", type=float, default=0.3, metavar="G", help="weight of the likeliest token alone")
    training.add_argument("--given", type=float, default=0.3, metavar="W", help="weight of prompts; answers weigh 1")
    training.add_argument("--vocabulary", type=int, metavar="N", help="train on the first N tokens of the vocabulary alone")
    training.add_argument("--remember-gb", type=float, default=1.0, metavar="G", help="memory for the target's states")
    training.add_argument("--evaluate-tokens", type=int, metavar="N", help="per answer (default: what the classes ask for)")


def run(args: argparse.Namespace) -> int:
    """Run `adaserve distill`; progress goes to stderr, quality by class to stdout as one line of JSON."""
    from adaserve.clock import WallClock
    from adaserve.distill.recipe import Recipe
    from adaserve.distill.run import Job, Texts, distill

    recipe = Recipe(
        steps=args.steps,
        minutes=args.minutes,
        batch_tokens=int(args.batch_tokens),
        micro_tokens=int(args.micro_tokens),
        rate=args.rate,
        optimizer=args.optimizer,
        greedy=args.greedy,
        given=args.given,
        vocabulary=args.vocabulary,
        remember_bytes=int(args.remember_gb * 1e9),
        seed=args.seed,
    )
    texts = Texts(
        write=int(args.write),
        prompts=tuple(args.prompts),
        files=tuple(args.texts),
        length=args.length,
        writer=args.writer,
        long=args.long,
        at_once=int(args.writer_tokens),
        library=args.library,
    )
    job = Job(
        model=args.model,
        out=args.out,
        layers=args.layers,
        texts=texts,
        recipe=recipe,
        init=args.init,
        device=args.device,
        save_texts=args.save_texts,
        evaluate=args.evaluate_tokens,
    )
    quality = distill(job, clock=WallClock(), say=lambda line: print(line, file=sys.stderr, flush=True))
    if quality:  # of several processes the first one alone speaks
        print(json.dumps({name: {"agreement": q.agreement, "coverage": q.coverage} for name, q in quality.items()}))
    return 0
