"""A policy: Discipline (who is served), Scheduling (how a step's rows are shared out), Selection (which nodes are verified)."""

from dataclasses import dataclass
from typing import Protocol

from adaserve.policy.discipline import FIRST_COME, Discipline
from adaserve.policy.selection import Selection
from adaserve.step import Order


@dataclass(frozen=True)
class Demand:
    """What waits for a step's rows, of the requests that take part in it.

    decoding: requests with a root each. prompt: known tokens not yet computed.
    """

    decoding: int
    prompt: int


@dataclass(frozen=True)
class Share:
    """How one step's rows are shared out.

    decode: whether the decoding requests take part in this step.
    prompt_rows: most prompt rows.
    budget: B, rows of the target's pass (roots, nodes, prompt rows). Roots and prompt rows are served even beyond it.
    depth, width: d and w of the beam.
    """

    decode: bool
    prompt_rows: int
    budget: int
    depth: int
    width: int


class Scheduling(Protocol):
    """Shares out the rows of each step."""

    def share(self, demand: Demand) -> Share:
        """Decide the step's rows from what waits for them."""
        ...

    @property
    def deepest(self) -> int:
        """The largest depth it may ever ask for; 0 means that no drafter is needed."""
        ...


@dataclass(frozen=True)
class Policy:
    """A name for a Scheduling, a Selection and a Discipline that go together, and what selection is told besides.

    per_request: n_max, most nodes that the SLO phase gives one request. order: who comes first in the SLO phase.
    """

    name: str
    scheduling: Scheduling
    selection: Selection
    per_request: int
    order: Order = Order.NEEDIEST
    discipline: Discipline = FIRST_COME
