"""The other ranks of a benchmark on several GPUs: processes of the same program, which follow the first one's executor."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from socket import socket

import torch

from adaserve.executor.executor import Executor
from adaserve.parallel.executor import Leader, follow
from adaserve.parallel.group import ALONE, Group, connect
from adaserve.parallel.messages import Here, Link, Load, Loaded
from adaserve.parallel.ranks import Ranks
from adaserve.parallel.world import TIMEOUT


def add_meeting(parser: argparse.ArgumentParser) -> None:
    """Declare what `start` gives the other ranks."""
    parser.add_argument("--meeting", nargs=2, metavar=("DESCRIPTOR", "FOLDER"), help=argparse.SUPPRESS)


def start(size: int, program: str, options: Sequence[str]) -> Ranks:
    """Start ranks 1 to size - 1."""
    return Ranks.start(size - 1, [sys.executable, program, *options, "--meeting"])


def meet(ranks: Ranks, size: int, device: torch.device, *, connected: bool = False) -> Group:
    """Rank 0's group. connected: also of one rank, so that its collectives run."""
    for rank, link in enumerate(ranks.links, start=1):
        link.send(Load(rank, size, "", "", "", "", device.type, 1, TIMEOUT))
    ranks.answers(Here)
    if size == 1 and not connected:
        return ALONE
    return connect(ranks.folder, rank=0, size=size, device=device, timeout=TIMEOUT)


def led(inner: Executor, group: Group, ranks: Ranks) -> Executor:
    """Rank 0's executor, once the others have theirs."""
    ranks.answers(Loaded)
    return Leader(inner, group, ranks) if group.size > 1 else inner


def be_rank(meeting: Sequence[str], device: torch.device, make: Callable[[Group], Executor]) -> None:
    """Be another rank, whose executor `make` makes, until rank 0 hangs up."""
    descriptor, folder = meeting
    link = Link(socket(fileno=int(descriptor)))
    load = link.hear()
    assert isinstance(load, Load), "rank 0 says first which rank this is"
    if device.type == "cuda":
        torch.cuda.set_device(load.rank)
    link.send(Here())
    group = connect(Path(folder), rank=load.rank, size=load.size, device=device, timeout=load.timeout)
    executor = make(group)
    link.send(Loaded(None))
    follow(executor, group, link, device)
    group.let_go()
