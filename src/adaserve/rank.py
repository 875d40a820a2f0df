"""The process of another rank than 0: loads its share of the model and follows rank 0's steps.

Started by rank 0 as `python -m adaserve.rank DESCRIPTOR FOLDER`, with a socket to it and the folder where the ranks meet
(parallel/ranks.py). It ends when rank 0 hangs up or its standard input closes, which happens with rank 0's process, even in the
middle of a step that waits for a rank that has died.
"""

import os
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path

import torch

from adaserve.assembly import Models, Sizes, make_executor
from adaserve.clock import WallClock
from adaserve.devices import DTYPES, compute_with
from adaserve.errors import AdaServeError, EngineFailed
from adaserve.framing import in_one_line
from adaserve.models.load import load_decoder
from adaserve.models.registry import Format, ModelSource
from adaserve.parallel.executor import follow
from adaserve.parallel.group import connect
from adaserve.parallel.messages import Failed, Here, Link, Load, Loaded, Serve
from adaserve.parallel.ranks import LOST_OTHERS


def serve(link: Link, folder: Path) -> None:
    """Be the rank that rank 0 asks for, until it hangs up. The ranks meet in `folder`."""
    load = link.hear()
    if not isinstance(load, Load):
        raise EngineFailed("the first message must say what to load")
    device, dtype = torch.device(load.device), DTYPES[load.dtype]
    if device.type == "cuda":
        torch.cuda.set_device(load.rank)
    compute_with(load.threads, dtype)
    link.send(Here())
    group = connect(folder, rank=load.rank, size=load.size, device=device, timeout=load.timeout)
    source = ModelSource(load.name, Format(load.format), Path(load.path))
    target = load_decoder(source, dtype=dtype, device=device, group=group)
    link.send(Loaded(torch.cuda.mem_get_info()[0] if device.type == "cuda" else None))
    sizes = link.hear()
    if not isinstance(sizes, Serve):
        return
    executor = make_executor(Models(target), Sizes(sizes.slots, sizes.length, sizes.pages, sizes.page_size), WallClock())
    follow(executor, group, link, device)
    group.let_go()  # in time or not: where the process ends first, rank 0 keeps the memory until it ends, too


def main(arguments: list[str]) -> int:
    """Run the process; returns its exit status."""
    # Rank 0 decides when to stop; signals meant for the whole group must not cut a step off.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    descriptor, folder = arguments
    threading.Thread(target=_end_with_rank_0, args=(Path(folder),), daemon=True).start()
    link = Link(socket.socket(fileno=int(descriptor)))
    try:
        serve(link, Path(folder))
        return 0
    except Exception as error:
        wanted = isinstance(error, AdaServeError) and not isinstance(error, EngineFailed)
        try:
            link.send(Failed(in_one_line(error), wanted))
        except EngineFailed:
            return 0  # it was rank 0 that went first
        return LOST_OTHERS if isinstance(error, EngineFailed) else 1


def _end_with_rank_0(folder: Path) -> None:
    sys.stdin.buffer.read()
    signal.alarm(1)  # whatever happens: without the folder, torch's search for it keeps the interpreter to itself
    shutil.rmtree(folder, ignore_errors=True)  # rank 0 may have had no time for it
    os._exit(0)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is left to save, and leaving the group properly would wait for ranks that may have gone.
    os._exit(status)
