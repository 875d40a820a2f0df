"""Policies by name."""

import re
from dataclasses import dataclass

from adaserve.errors import InvalidConfig
from adaserve.policy.adaptive import AdaptiveScheduling, Constants
from adaserve.policy.policy import Policy
from adaserve.policy.prefill_first import PrefillFirst
from adaserve.policy.selection import ChainSelection, SloSelection
from adaserve.step import Order
from adaserve.tree import MAX_NODES

NAMES = ("adaserve", "continuous", "spec:K")
MAX_CHAIN = 16


@dataclass(frozen=True)
class Overrides:
    """What the user fixes instead of leaving it to the policy; None leaves it."""

    budget: int | None = None
    depth: int | None = None
    width: int | None = None
    chunk_rows: int | None = None
    order: Order = Order.NEEDIEST


def make_policy(name: str, constants: Constants, overrides: Overrides | None = None) -> Policy:
    """Build the policy called `name`; raises InvalidConfig, naming the known ones, for any other name."""
    chosen = overrides or Overrides()
    chain = re.fullmatch(r"spec:(\d{1,3})", name)
    if chain:
        length = int(chain[1])
        if not 1 <= length <= MAX_CHAIN:
            raise InvalidConfig(f"policy spec:K takes 1 <= K <= {MAX_CHAIN}, got {length}")
        return Policy(name, PrefillFirst(length, chosen.chunk_rows or 2048), ChainSelection(), per_request=length)
    if name == "continuous":
        return Policy(name, PrefillFirst(0, chosen.chunk_rows or 2048), ChainSelection(), per_request=0)
    if name == "adaserve":
        changed = {
            "verify_rows": chosen.budget or constants.verify_rows,
            "prompt_rows": chosen.chunk_rows or constants.prompt_rows,
        }
        settled = Constants(**{**vars(constants), **changed})
        scheduling = AdaptiveScheduling(settled, chosen.depth, chosen.width)
        return Policy(name, scheduling, SloSelection(), per_request=min(settled.per_request, MAX_NODES), order=chosen.order)
    raise InvalidConfig(f"unknown policy {name!r}: choose one of {', '.join(NAMES)}")
