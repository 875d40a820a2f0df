"""How large a step becomes: how deep it drafts, how many nodes it may verify, and how long it is going to take.

rows of the target's pass |  roots  |  nodes: as the budget has room, as drafters propose  |  prompt rows  |  padding  |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaserve.latency import LatencyModel
from adaserve.padding import Padding, most_nodes
from adaserve.policy.policy import RowShare
from adaserve.request import RequestState
from adaserve.scheduling.drafting import Drafting
from adaserve.step import Chunk, StepShape, draft_work


@dataclass(frozen=True)
class Size:
    """What a step drafts and verifies at most; the fields are those of a StepPlan and its Limits.

    predicted: t, in seconds, with as many nodes as are likely to be verified.
    """

    room: tuple[int, ...]
    drafting: tuple[Chunk | None, ...]
    catch_up: tuple[Chunk, ...]
    depth: int
    nodes: int
    price: tuple[float, ...]
    predicted: float


@dataclass(frozen=True)
class Sizing:
    """Turns a policy's share of rows into the size of a step.

    drafting: who proposes trees. latency: what steps take. padding: how many rows the executor computes.
    """

    drafting: Drafting
    latency: LatencyModel
    padding: Padding

    def size(
        self, share: RowShare, decoding: Sequence[RequestState], chunks: Sequence[Chunk], running: Mapping[int, RequestState]
    ) -> Size:
        """The size of a step in which these requests decode beside these chunks of prompts; running: all requests by slot."""
        deepest, spared = share.depth, share.spared
        room = tuple([0 if s.request.id in spared else deepest if s.remaining > deepest else s.remaining - 1 for s in decoding])
        drafting: list[Chunk | None] = [None] * len(decoding)
        catch_up: list[Chunk] = []
        if share.depth:
            along = [c for c in chunks if running[c.slot].request.id not in share.spared]
            most = max(share.prompt_rows, share.catch_up)
            drafting, catch_up = self.drafting.work(decoding, room, along, running, most, share.lost)
        prompt = sum([c.length for c in chunks])
        nodes = max(0, share.budget - len(decoding) - prompt)
        # Nobody drafts deeper than anybody can use, nor for a budget that prompts have spent.
        depth = max((most for chunk, most in zip(drafting, room, strict=True) if chunk is not None), default=0) if nodes else 0
        proposed = (len(drafting) - drafting.count(None)) * self.drafting.nodes(depth, share.width)
        if nodes < proposed:  # the budget says how many, so padding counts
            nodes = most_nodes(self.padding, len(decoding), prompt, share.budget)
        fitting = min(nodes, proposed)
        likely = fitting if share.nodes is None else min(fitting, share.nodes)
        rows = self.padding.whole(self.padding.trees(len(decoding), likely, fitting), prompt)
        context = sum([len(s.tokens) for s in decoding]) + sum([c.start + c.length for c in chunks])
        work = draft_work(drafting, catch_up, depth, share.width) if self.drafting.has_model else ((), 0)
        predicted = self.latency.predict(StepShape(rows, context, *work, prompt))
        price: tuple[float, ...] = ()
        if share.token_price is not None:
            nodes = fitting
            if not self.padding.pays_for_room:  # else all that fits is paid for
                price = self.latency.prices(len(decoding) + prompt, nodes, share.token_price)
        return Size(room, tuple(drafting), tuple(catch_up), depth, nodes, price, predicted)
