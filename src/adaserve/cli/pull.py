"""Fetch a known model into the cache, its checksum verified."""

import argparse
import sys

from adaserve.models.registry import KNOWN

EXAMPLES = """examples:
  adaserve pull demo
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `adaserve pull`."""
    parser.add_argument("name", metavar="NAME", help=f"a known model: {', '.join(KNOWN)}")


def run(args: argparse.Namespace) -> int:
    """Run `adaserve pull`; progress goes to stderr, the model's path to stdout."""
    from adaserve.models.pull import pull

    print(pull(args.name, progress=lambda line: print(line, file=sys.stderr, flush=True)).path)
    return 0
