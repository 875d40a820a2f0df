"""Puts the parts of `adaserve+` together."""

from adaserve.policy.adaptive import AdaptiveScheduling, Constants
from adaserve.policy.discipline import FIRST_COME, Discipline
from adaserve.policy.plus.admission import DueQueue, due_first
from adaserve.policy.plus.calibration import Calibration
from adaserve.policy.plus.parts import PlusConstants, PlusParts
from adaserve.policy.plus.scheduling import PlusScheduling
from adaserve.policy.plus.selection import SurplusSelection
from adaserve.policy.plus.strain import Strain
from adaserve.policy.policy import Policy
from adaserve.policy.selection import Selection, SloSelection
from adaserve.tree import MAX_NODES


def make_plus(
    name: str,
    paper: Constants,
    parts: PlusParts,
    constants: PlusConstants,
    *,
    budget: int | None = None,
    depth: int | None = None,
    width: int | None = None,
) -> Policy:
    """Build `adaserve+` of some parts. paper: what the parts left out go by. budget, depth, width: fixed by the user."""
    calibration = Calibration(constants.learning, parts.coupled)
    strain = Strain(constants.hold_pace) if parts.admitting and parts.holding else None
    scheduling = PlusScheduling(parts, constants, AdaptiveScheduling(paper, depth, width), calibration, strain, budget)
    selection: Selection = SloSelection()
    if parts.calibrated or parts.priced or parts.attaining:
        selection = SurplusSelection(constants.urgency, calibration if parts.calibrated else None)
    discipline = FIRST_COME
    if parts.admitting:
        discipline = Discipline(lambda baseline: DueQueue(baseline, constants, strain), turns=due_first)
    most = min(paper.per_request, MAX_NODES)
    return Policy(
        name,
        scheduling,
        selection,
        per_request=most,
        discipline=discipline,
        learner=scheduling,
        coupled=parts.coupled,
        memory=calibration if parts.calibrated else None,
        hopeless=scheduling.hopeless if parts.refusing else None,
    )
