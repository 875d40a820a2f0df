"""Replaying does to careless calls what a graph would; and the executor's calls are replayed."""

import random

import torch

from adaserve.assembly import Sizes, assemble_engine, make_executor
from adaserve.clock import WallClock
from adaserve.policy.library import make_policy
from adaserve.request import SamplingParams
from tests.captures import Replaying
from tests.engines import PROFILE, SMALL, random_requests, run, tiny_models

CPU = torch.device("cpu")


def test_a_call_that_reads_more_than_its_key_and_inputs_goes_wrong() -> None:
    capture = Replaying(CPU)
    x = torch.arange(3)
    found = []
    for summand in (1, 2):
        found.append(capture("add", lambda t, s=summand: t + s, x).tolist())
    assert found == [[1, 2, 3], [1, 2, 3]]
    assert capture(("add", 2), lambda t: t + 2, x).tolist() == [2, 3, 4]
    assert capture.replays == {"add": 1, ("add", 2): 0}


def test_results_last_until_the_next_call() -> None:
    capture = Replaying(CPU)
    kept = capture("first", lambda t: t * 2, torch.ones(2))
    assert kept.tolist() == [2, 2]
    assert capture("second", lambda t: t + 1, kept).tolist() == [3, 3]  # as an input it is read in time
    assert (kept < 0).all()


def test_steps_with_and_without_prompt_chunks_are_replayed() -> None:
    captures: list[Replaying] = []

    def capture(device: torch.device) -> Replaying:
        captures.append(Replaying(device))
        return captures[-1]

    models, sizes, clock = tiny_models(), Sizes(8, 200, 400, 4), WallClock()
    executor = make_executor(models, sizes, clock, padded=True, capture=capture)
    engine = assemble_engine(models, sizes, make_policy("adaserve", SMALL), PROFILE, clock=clock, executor=executor)
    sampling = [SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)]
    run(engine, random_requests(random.Random(3), 24, sampling), burst=2)
    replays = {key[0] for capture in captures for key, count in capture.replays.items() if count}
    assert replays == {"speculate", "select", "verify", "rows", "draw"}
