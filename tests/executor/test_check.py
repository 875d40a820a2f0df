"""What surrounds the target's pass over trees."""

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor

from adaserve.assembly import Sizes, assemble_engine, make_executor
from adaserve.clock import WallClock
from adaserve.policy.library import make_policy
from adaserve.request import Request, SamplingParams, Targets
from adaserve.runtime.capture import Plainly
from adaserve.step import PageGrant, Placement
from tests.engines import PROFILE, SMALL
from tests.executor.test_cuda import models

T = TypeVar("T")


def test_getting_ready_changes_nothing() -> None:
    check = make_executor(models(torch.float32), Sizes(2, 40, 20, 4), WallClock(), padded=True)._check
    for slot in range(2):
        check.table.place(Placement(slot, (5, 6, 7), 3, SamplingParams(), 0, 0, ()))
        check.table.grant([PageGrant(slot, 0, (slot, slot + 2))])
    check.pool.keys.normal_()
    check.pool.values.normal_()
    state = check.table.known, check.table.tokens[:2], check.table.pages, check.pool.keys, check.pool.values
    before = [x.clone() for x in state]
    check.prepare()
    assert all(a.equal(b) for a, b in zip(state, before, strict=True))


def test_nothing_is_captured_where_there_are_prompts_alone() -> None:
    """Neither rows of trees nor draws, of which there are none before a prompt's end: a graph of nothing is an error."""
    keys: list[Hashable] = []

    class Noting(Plainly):
        def __call__(self, key: Hashable, run: Callable[..., T], *inputs: Tensor) -> T:
            keys.append(key[0] if isinstance(key, tuple) else key)
            return super().__call__(key, run, *inputs)

    pair, sizes = models(torch.float32), Sizes(2, 80, 40, 4)
    executor = make_executor(pair, sizes, WallClock(), padded=True, capture=Noting)
    engine = assemble_engine(pair, sizes, make_policy("adaserve", SMALL), PROFILE, clock=WallClock(), executor=executor)
    engine.add(Request("a", tuple(range(40)), SamplingParams(max_tokens=4, temperature=0.0), Targets(), 0, 0.0))
    report = engine.step()  # which begins the next one, too
    assert report is not None and report.outcome is not None and not report.outcome.plan.decoding
    assert sum(c.length for c in report.outcome.plan.chunks) < 20 and not keys
    while engine.step() is not None:
        pass
    assert {"draw", "select", "verify"} <= set(keys)
