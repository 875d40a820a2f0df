"""Reliability: what was put to the test is counted in the tenth of what was said of it."""

from types import SimpleNamespace
from typing import cast

import pytest

from adaserve.bench.reliability import Bins, Watch
from adaserve.step import Drafted, StepOutcome
from adaserve.tree import Source


def test_bins_hold_what_was_said_and_what_came() -> None:
    bins = Bins()
    for said, accepted in ((0.1, False), (0.85, True), (0.85, False), (1.0, True)):
        bins.take(said, accepted)
    assert bins.points(least=2) == [(pytest.approx(0.85), 0.5, 2)]
    assert [count for _, _, count in bins.points(least=1)] == [1, 2, 1]
    assert bins.error == pytest.approx((0.1 + 2 * 0.35 + 0.0) / 4)


def test_a_node_whose_parent_was_refused_says_nothing() -> None:
    sources = (int(Source.MODEL), int(Source.MODEL), int(Source.NGRAM))
    drafted = Drafted((0, 0, 1), (1, 2, 1), sources, (0.6, 0.3, 0.4), (0.6, 0.5, 0.4), (True, False, True), (False, False, True))
    watch = Watch({"draft": lambda seen: seen.edge_prob, "half": lambda seen: [0.5] * len(seen.depth)})
    watch.learn(cast(StepOutcome, SimpleNamespace(drafted=drafted)))
    assert watch.bins[Source.MODEL]["draft"].points(1) == [(0.6, 0.0, 1)]
    assert watch.bins[Source.NGRAM]["half"].points(1) == [(0.5, 1.0, 1)]
    assert sum(watch.bins[Source.BOTH]["draft"].count) == 0
