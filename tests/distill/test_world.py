"""Processes that torchrun started agree on sums, on the time, and on nothing else."""

import os
import socket
import subprocess
import sys

import torch

from adaserve.distill.world import TrainingWorld

PROGRAM = """
import torch
from adaserve.distill.world import TrainingWorld
world = TrainingWorld.join(torch.device("cpu"))
first, second = world.sum_all([torch.tensor([1.0, 2.0]) * (world.rank + 1), torch.full((1, 2), float(world.rank))])
print(world.is_first, world.agree(5.0 + world.rank), first.tolist(), second.tolist())
world.leave()
"""


def test_two_processes() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], env=common | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0].strip() for process in started]
    assert said == [f"{first} 5.0 [3.0, 6.0] [[1.0, 1.0]]" for first in (True, False)]


def test_one_process_needs_nobody() -> None:
    world, value = TrainingWorld(), torch.tensor([2.0])
    assert world.is_first and world.agree(7.5) == 7.5
    assert world.sum(value) is value and world.sum_all([value])[0] is value
