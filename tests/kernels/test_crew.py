"""The threads that the kernels share: any number of them, callers at once, and forks give the result of one."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adaserve.kernels.linear import Linear
from adaserve.kernels.top import argmax
from tests.devices import needs_native

pytestmark = needs_native  # torch's own threads do not outlive a fork


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_results_do_not_depend_on_the_number_of_threads(count: int):
    linear = Linear(torch.randn(1000, 200).bfloat16())
    x = torch.randn(20, 200)
    torch.set_num_threads(1)
    alone = linear(x)
    torch.set_num_threads(count)
    for _ in range(200):
        assert torch.equal(linear(x), alone)


def test_callers_at_once_do_not_mix():
    """The crew serves one caller; the others work alone meanwhile."""
    torch.set_num_threads(2)
    linear = Linear(torch.randn(600, 150).bfloat16())
    examples = [torch.randn(rows, 150) for rows in range(4, 12)]
    expected = [linear(x) for x in examples]

    def repeat(index: int) -> bool:
        return all(torch.equal(linear(examples[index]), expected[index]) for _ in range(100))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(repeat, range(8)))


def test_sleeping_helpers_wake():
    import time

    torch.set_num_threads(3)
    logits = torch.randn(9, 5000)
    expected = logits.argmax(-1)
    for pause in (0.0, 0.00005, 0.0002, 0.002, 0.02) * 4:
        time.sleep(pause)
        assert torch.equal(argmax(logits), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_a_crew_of_its_own():
    torch.set_num_threads(2)
    linear = Linear(torch.randn(1000, 200).bfloat16())
    x = torch.randn(20, 200)
    expected = linear(x)
    child = os.fork()
    if child == 0:
        good = all(torch.equal(linear(x), expected) for _ in range(20))
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(linear(x), expected)
