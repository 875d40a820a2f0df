"""Embed a small checkpoint in a large shape, its function preserved: for timing what large models cost.

The folder written is a model like any other: `adaserve serve FOLDER --draft SMALL` drafts for it with the small one.
"""

import argparse
import sys
from pathlib import Path

SHAPES = ("8b", "32b", "70b")

EXAMPLES = """examples:
  adaserve grow demo --shape 8b --out grown-8b
  adaserve serve grown-8b --draft demo
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `adaserve grow`."""
    parser.add_argument("model", metavar="MODEL", help="a folder or hub id in Hugging Face layout, a .gguf file, or a known name")
    parser.add_argument("--shape", required=True, choices=SHAPES, help="the shape to grow to")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write the folder (default: MODEL-SHAPE)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the new weights (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run `adaserve grow`; progress goes to stderr, the folder's path to stdout."""
    import torch

    from adaserve.models.grow import SHAPES, GrownWeights, grown_config
    from adaserve.models.load import open_model
    from adaserve.models.registry import resolve
    from adaserve.models.save import save_folder
    from adaserve.models.tokenizer import load_tokenizer

    source = resolve(args.model)
    folder = args.out or Path(f"{Path(args.model).stem}-{args.shape}")
    tokenizer = load_tokenizer(source)
    small, weights = open_model(source)
    config = grown_config(small, SHAPES[args.shape])
    grown = GrownWeights(small, weights, config, dtype=torch.bfloat16, seed=args.seed)
    save_folder(config, grown, folder, lambda line: print(line, file=sys.stderr, flush=True))
    tokenizer.save(folder)
    print(folder)
    return 0
