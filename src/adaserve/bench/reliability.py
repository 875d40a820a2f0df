"""Reliability: how often verified nodes were accepted, against what was said of them beforehand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from adaserve.step import Drafted, StepOutcome
from adaserve.tree import Source

TENTHS = 10

Expect = Callable[[Drafted], Sequence[float]]
"""Says of each verified node, [m], how likely it was to be accepted once its parent was."""


@dataclass
class Bins:
    """Nodes that were put to the test, by tenths of what was said: how many, the sum of what was said, how many were accepted."""

    count: list[int] = field(default_factory=lambda: [0] * TENTHS)
    said: list[float] = field(default_factory=lambda: [0.0] * TENTHS)
    right: list[int] = field(default_factory=lambda: [0] * TENTHS)

    def take(self, said: float, accepted: bool) -> None:
        """Count a node."""
        cell = min(int(said * TENTHS), TENTHS - 1)
        self.count[cell] += 1
        self.said[cell] += said
        self.right[cell] += accepted

    @property
    def error(self) -> float:
        """The expected calibration error: |said - came| of the tenths, weighted by how many nodes are in each."""
        return sum(abs(s - r) for s, r in zip(self.said, self.right, strict=True)) / max(1, sum(self.count))

    def points(self, least: int) -> list[tuple[float, float, int]]:
        """Per tenth with at least so many nodes: what was said on average, how often it came, and the nodes."""
        cells = zip(self.said, self.right, self.count, strict=True)
        return [(said / count, right / count, count) for said, right, count in cells if count >= least]


class Watch:
    """A policy's learner that only looks: at what each expectation, by name, says of the nodes, before anything is learned.

    Only nodes whose parent was accepted are counted: the others were not put to the test.
    """

    def __init__(self, expectations: Mapping[str, Expect]) -> None:
        self._expectations = expectations
        self.bins = {source: {name: Bins() for name in expectations} for source in Source}

    def learn(self, outcome: StepOutcome) -> None:
        """Take in a step's nodes."""
        drafted = outcome.drafted
        for name, expect in self._expectations.items():
            nodes = zip(expect(drafted), drafted.source, drafted.reached, drafted.accepted, strict=True)
            for said, source, reached, accepted in nodes:
                if reached:
                    self.bins[Source(source)][name].take(said, accepted)
