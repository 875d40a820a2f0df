"""A policy: Discipline (who is served), Scheduling (how a step's rows are shared out), Selection (which nodes are verified)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from adaserve.latency import LatencyModel
from adaserve.padding import Padding
from adaserve.policy.discipline import FIRST_COME, Discipline
from adaserve.policy.memory import Memory
from adaserve.policy.selection import Selection
from adaserve.request import Request, RequestState
from adaserve.step import Order, StepOutcome


@dataclass(frozen=True)
class Scene:
    """The requests behind a Demand's counts, for policies that look at each of them.

    decoding: those with a root each. backlog: those with known tokens still to compute, in the order in which they are served.
    waiting: how many have no slot yet. crowded: whether the next of them would come now, and finds no slot or no pages; False
        where the queue lets nobody come, or nobody was asked.
    latency: what steps take, as far as is known. padding: how many rows passes compute.
    """

    now: float
    decoding: Sequence[RequestState]
    backlog: Sequence[RequestState]
    waiting: int
    latency: LatencyModel
    padding: Padding
    crowded: bool


@dataclass(frozen=True)
class Demand:
    """What waits for a step's rows, of the requests that take part in it.

    decoding: requests with a root each. prompt: known tokens not yet computed. scene: the requests themselves; None where only
    the counts are known.
    """

    decoding: int
    prompt: int
    scene: Scene | None = None


@dataclass(frozen=True)
class RowShare:
    """How one step's rows are shared out.

    decode: whether the decoding requests take part in this step.
    prompt_rows: most prompt rows.
    budget: B, rows that the target's pass computes (roots, nodes, prompt rows, padding). Roots and prompt rows are served even
        beyond it.
    depth, width: d and w of the beam.
    nodes: how many draft nodes the step is likely to verify, for its predicted duration; None: all that fit.
    pace: the share of its target that a request is steered to, the rest being a margin.
    lost: ids of requests that cannot attain any more: they need nothing in this step.
    spared: ids of requests that are not drafted for, nor their prompts read by a draft model, because nothing is gained by it.
    token_price: seconds that a token is worth: no node is verified that costs more than it promises. None: nodes are free.
    catch_up: most rows that a draft model reads if it is more than prompt_rows: prompts first, then who decodes and is behind.
    """

    decode: bool
    prompt_rows: int
    budget: int
    depth: int
    width: int
    nodes: int | None = None
    pace: float = 1.0
    lost: frozenset[str] = frozenset()
    spared: frozenset[str] = frozenset()
    token_price: float | None = None
    catch_up: int = 0


class Scheduling(Protocol):
    """Shares out the rows of each step."""

    def share(self, demand: Demand) -> RowShare:
        """Decide the step's rows from what waits for them."""
        ...

    @property
    def deepest(self) -> int:
        """The largest depth it may ever ask for; 0 means that no drafter is needed."""
        ...


Hopeless = Callable[[Request, Scene], bool]
"""Whether a request that comes cannot attain its SLO any more; the scene's decoding requests are all who run or wait."""


class Learner(Protocol):
    """Learns from every step; what a policy knows beyond the requests' states lives in one."""

    def learn(self, outcome: StepOutcome) -> None:
        """Take in what a step brought: after the states have changed by it, when the next step is planned already."""
        ...


@dataclass(frozen=True)
class Policy:
    """A name for a Scheduling, a Selection and a Discipline that go together, and what selection is told besides.

    per_request: n_max, most nodes that the SLO phase gives one request. order: who comes first in the SLO phase.
    learner: is told of every step; None if the policy remembers nothing.
    coupled: whether drafts are ranked by the noise of the target's draws too.
    memory: what it learned that is worth keeping between starts; None if nothing is.
    hopeless: who is refused on arrival; None to take everybody in.
    """

    name: str
    scheduling: Scheduling
    selection: Selection
    per_request: int
    order: Order = Order.NEEDIEST
    discipline: Discipline = FIRST_COME
    learner: Learner | None = None
    coupled: bool = False
    memory: Memory | None = None
    hopeless: Hopeless | None = None
