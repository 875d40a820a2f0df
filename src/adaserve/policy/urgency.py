"""Urgent requests first: what the paper compares with as "vLLM + Priority" (arXiv 2501.12162, section 1 and Figure 1).

It says of that baseline that it constrains the batch and pre-empts requests that are not urgent while others decode. Here: the
tighter the TPOT target, the more urgent; relaxed requests decode only as far as the most urgent ones still meet their target.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from adaserve.policy.discipline import Forecast
from adaserve.request import RequestState


@dataclass(frozen=True)
class Urgency:
    """Ranks requests by their TPOT target, the tightest first; requests without one come last."""

    def level(self, state: RequestState) -> float:
        tpot = state.request.targets.tpot
        return math.inf if tpot is None else tpot

    def rank(self, state: RequestState, now: float) -> float:
        return self.level(state)


@dataclass(frozen=True)
class UrgentTurns:
    """Bounds the batch by the tightest target in it.

    Of the requests that decode, all of the tightest target take part, and of the others, the more urgent first, as many as leave
    the step's predicted duration within that target. Nothing protects the relaxed ones from starving, as in vLLM.
    """

    def __call__(self, running: Sequence[RequestState], now: float, forecast: Forecast) -> Sequence[RequestState]:
        decoding = [s for s in running if s.is_decoding]
        target = decoding[0].request.targets.tpot if decoding else None
        if target is None:
            return running
        context = list(accumulate(len(s.tokens) for s in decoding))
        fewest = sum(s.request.targets.tpot == target for s in decoding)
        most = len(decoding)
        while fewest < most:  # the duration rises with the batch: bisect
            half = (fewest + most + 1) // 2
            if forecast(half, context[half - 1]) <= target:
                fewest = half
            else:
                most = half - 1
        return [s for s in running if not s.is_decoding] + decoding[:most]
