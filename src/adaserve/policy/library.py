"""Policies by name: the paper's own, and those that it is compared with. docs/guides/policies.md describes each."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from adaserve.errors import InvalidConfig
from adaserve.policy.adaptive import AdaptiveScheduling, Constants
from adaserve.policy.discipline import FIRST_COME, Discipline
from adaserve.policy.fair import FairQueue
from adaserve.policy.levels import LevelTurns, SkipJoin
from adaserve.policy.plus.assembly import make_plus
from adaserve.policy.plus.parts import PlusConstants, PlusParts
from adaserve.policy.policy import Policy
from adaserve.policy.prefill_first import PrefillFirst
from adaserve.policy.queues import RankedQueue
from adaserve.policy.selection import ChainSelection, LikelihoodSelection, Selection, SloSelection
from adaserve.policy.stall_free import StallFree
from adaserve.policy.urgency import Urgency, UrgentTurns
from adaserve.step import Order
from adaserve.tree import MAX_NODES

MAX_CHAIN = 16
PLUS = "adaserve+"
WITHOUT = f"{PLUS}:no-"
"""Begins the names of `adaserve+` with parts left out: adaserve+:no-priced, adaserve+:no-priced,coupled."""

WITH = f"{PLUS}:with-"
"""Begins the names of `adaserve+` with parts in use that it leaves out by itself: adaserve+:with-refusing."""


@dataclass(frozen=True)
class Overrides:
    """What the user fixes instead of leaving it to the policy; None leaves it."""

    budget: int | None = None
    depth: int | None = None
    width: int | None = None
    chunk_rows: int | None = None
    order: Order = Order.NEEDIEST
    coupled: bool | None = None

    def known_to(self, name: str) -> "Overrides":
        """The same without a depth and width that the policy called `name` cannot follow: for tools that run several policies."""
        return self if _fixed_draft(name) is None else replace(self, depth=None, width=None)


def make_policy(name: str, constants: Constants, overrides: Overrides | None = None) -> Policy:
    """Build the policy called `name`.

    An override with nothing to act on has no effect (a budget for trees where there are none). Raises InvalidConfig for an
    unknown name, saying which there are, and for a depth or width other than the one that the policy itself stands for.
    """
    chosen = overrides or Overrides()
    fixed = _fixed_draft(name)
    if fixed is not None:
        depth, width = fixed
        if chosen.depth not in (None, depth):
            drafts = f"drafts {depth} tokens a step" if depth else "does not draft"
            raise InvalidConfig(f"policy {name} {drafts}: leave out --depth {chosen.depth}, or choose another policy")
        if depth and chosen.width not in (None, width):
            raise InvalidConfig(f"policy {name} drafts chains: leave out --width {chosen.width}, or choose another policy")
    policy = _MAKERS[_family(name)](name, constants, chosen)
    return policy if chosen.coupled is None else replace(policy, coupled=chosen.coupled)


def _family(name: str) -> str:
    """The entry of _MAKERS that a name belongs to; the name itself where there is none."""
    if name.startswith("spec:"):
        return "spec:K"
    return PLUS if name.startswith((WITHOUT, WITH)) else name


def _fixed_draft(name: str) -> tuple[int, int] | None:
    """Depth and width that the name stands for; None where they are free. Raises InvalidConfig for an unknown name."""
    chain = re.fullmatch(r"spec:(\d{1,3})", name)
    if chain:
        length = int(chain[1])
        if not 1 <= length <= MAX_CHAIN:
            raise InvalidConfig(f"policy spec:K takes 1 <= K <= {MAX_CHAIN}, got {length}")
        return length, 1
    family = _family(name)
    if family not in _MAKERS or family == "spec:K":
        raise InvalidConfig(f"unknown policy {name!r}: choose one of {', '.join(NAMES)}")
    return None if family in ("adaserve", PLUS, "throughput", "specinfer") else (0, 1)


def _adaserve(name: str, constants: Constants, chosen: Overrides) -> Policy:
    return _adaptive(name, constants, chosen, SloSelection())


def _plus(name: str, constants: Constants, chosen: Overrides) -> Policy:
    plus = PlusConstants() if chosen.chunk_rows is None else replace(PlusConstants(), prompt_rows=chosen.chunk_rows)
    paper = _settled(constants, chosen)
    parts = PlusParts()
    for left_out in name.removeprefix(WITHOUT).split(",") if name.startswith(WITHOUT) else ():
        parts = parts.without(left_out)
    for used in name.removeprefix(WITH).split(",") if name.startswith(WITH) else ():
        parts = parts.also(used)
    if chosen.coupled is not None:
        parts = replace(parts, coupled=chosen.coupled)
    return make_plus(name, paper, parts, plus, budget=chosen.budget, depth=chosen.depth, width=chosen.width)


def _throughput(name: str, constants: Constants, chosen: Overrides) -> Policy:
    return _adaptive(name, constants, chosen, LikelihoodSelection())


def _adaptive(name: str, constants: Constants, chosen: Overrides, selection: Selection) -> Policy:
    settled = _settled(constants, chosen)
    scheduling = AdaptiveScheduling(settled, chosen.depth, chosen.width)
    return Policy(name, scheduling, selection, per_request=min(settled.per_request, MAX_NODES), order=chosen.order)


def _settled(constants: Constants, chosen: Overrides) -> Constants:
    return replace(
        constants,
        verify_rows=chosen.budget or constants.verify_rows,
        prompt_rows=chosen.chunk_rows or constants.prompt_rows,
    )


def _continuous(name: str, constants: Constants, chosen: Overrides) -> Policy:
    return _plain(name, constants, chosen, FIRST_COME)


def _sarathi(name: str, constants: Constants, chosen: Overrides) -> Policy:
    # A pass over B1 rows takes at most twice as long as one over a single row. Over 2 B1 rows, 512 for a 32B model on one H200,
    # it takes about three times as long: within the five decode iterations that Sarathi-Serve's strict target grants a step.
    scheduling = StallFree(chosen.budget or constants.token_budget or 2 * constants.verify_rows, chosen.chunk_rows)
    return Policy(name, scheduling, ChainSelection(), per_request=0)


def _spec(name: str, constants: Constants, chosen: Overrides) -> Policy:
    length = int(name.removeprefix("spec:"))
    scheduling = PrefillFirst(length, 1, chosen.chunk_rows or constants.batched_tokens, chosen.budget)
    return Policy(name, scheduling, ChainSelection(), per_request=length)


def _specinfer(name: str, constants: Constants, chosen: Overrides) -> Policy:
    depth = constants.tree_depth if chosen.depth is None else chosen.depth
    width = constants.tree_width if chosen.width is None else chosen.width
    if depth * width > MAX_NODES:
        raise InvalidConfig(f"policy specinfer verifies depth x width <= {MAX_NODES} nodes a request, got {depth} x {width}")
    scheduling = PrefillFirst(depth, width, chosen.chunk_rows or constants.batched_tokens, chosen.budget)
    return Policy(name, scheduling, ChainSelection(), per_request=depth * width)


def _priority(name: str, constants: Constants, chosen: Overrides) -> Policy:
    urgency = Urgency()
    return _plain(name, constants, chosen, Discipline(lambda baseline: RankedQueue(urgency), urgency, UrgentTurns()))


def _fastserve(name: str, constants: Constants, chosen: Overrides) -> Policy:
    levels = SkipJoin(quantum=constants.level_quantum, prompt_rows=constants.verify_rows, patience=constants.level_patience)
    turns = LevelTurns(levels, batch=chosen.budget or constants.verify_rows)
    return _plain(name, constants, chosen, Discipline(lambda baseline: RankedQueue(levels), levels, turns))


def _vtc(name: str, constants: Constants, chosen: Overrides) -> Policy:
    return _plain(name, constants, chosen, Discipline(lambda baseline: FairQueue()))


def _plain(name: str, constants: Constants, chosen: Overrides, discipline: Discipline) -> Policy:
    """vLLM without speculation, under some discipline."""
    scheduling = PrefillFirst(most_prompt_rows=chosen.chunk_rows or constants.batched_tokens)
    return Policy(name, scheduling, ChainSelection(), per_request=0, discipline=discipline)


_MAKERS: dict[str, Callable[[str, Constants, Overrides], Policy]] = {
    "adaserve": _adaserve,
    PLUS: _plus,
    "throughput": _throughput,
    "continuous": _continuous,
    "sarathi": _sarathi,
    "spec:K": _spec,
    "specinfer": _specinfer,
    "priority": _priority,
    "fastserve": _fastserve,
    "vtc": _vtc,
}
NAMES = tuple(_MAKERS)
