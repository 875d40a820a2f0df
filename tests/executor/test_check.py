"""What surrounds the target's pass over trees."""

from adaserve.assembly import Sizes, make_executor
from adaserve.clock import WallClock
from adaserve.request import SamplingParams
from adaserve.step import PageGrant, Placement
from tests.engines import tiny_models


def test_getting_ready_changes_nothing() -> None:
    check = make_executor(tiny_models(), Sizes(2, 40, 20, 4), WallClock(), padded=True)._check
    for slot in range(2):
        check.table.place(Placement(slot, (5, 6, 7), 3, SamplingParams(), 0, 0, ()))
        check.table.grant([PageGrant(slot, 0, (slot, slot + 2))])
    check.pool.keys.normal_()
    check.pool.values.normal_()
    state = check.table.known, check.table.tokens[:2], check.table.pages, check.pool.keys, check.pool.values
    before = [x.clone() for x in state]
    check.prepare()
    assert all(a.equal(b) for a, b in zip(state, before, strict=True))
