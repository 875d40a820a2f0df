"""Bands of temperature, within which a draft's probability means much the same.

What a draft calls 0.45 comes true 57% of the time at temperature 0, where the likeliest token comes and is mostly the same for
both models. At temperature 1 the target draws without asking, and it is 33%. A coupled draft knows the noise of the draws; what
it says is as true at 1 as at 0: 53% (first choices of the recorded demo pair).
"""

from collections.abc import Sequence
from enum import IntEnum

from torch import Tensor

WARM_UP_TO = 0.75
"""Part of the table's form, as the bands are. The given traces draw at one temperature, so none of them can tell a better one."""


class Band(IntEnum):
    """At temperature 0; up to WARM_UP_TO; above."""

    GREEDY = 0
    WARM = 1
    HOT = 2


def band(temperature: float) -> Band:
    """The band of a temperature."""
    if temperature == 0:
        return Band.GREEDY
    return Band.WARM if temperature <= WARM_UP_TO else Band.HOT


def bands(temperature: Tensor) -> Tensor:
    """The bands of temperatures [n], [n] int64."""
    return (temperature > 0).long() + (temperature > WARM_UP_TO)


def kin(coupled: bool) -> Sequence[Sequence[Band]]:
    """Bands that learn from one another: at the start, what was seen in one counts for its kin too."""
    return [tuple(Band)] if coupled else [(Band.GREEDY,), (Band.WARM, Band.HOT)]
