"""What drafting brings, counted and not timed: tokens a step, and which nodes were accepted, by class of request."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

from adaserve.build import Parts
from adaserve.policy.policy import Demand, Policy, RowShare
from adaserve.policy.selection import LikelihoodSelection
from adaserve.request import Request, SamplingParams, Targets
from adaserve.step import StepOutcome
from adaserve.tree import MAX_NODES
from adaserve.workload import DEMO_MIX
from adaserve.workload.prompts import prompts

BINS = 10
"""Of the probabilities in a reliability table."""


def add_drafting_options(parser: argparse.ArgumentParser, trees: list[str]) -> None:
    """Add what is drafted for, with which trees, and where. trees: the default, each depth x width x nodes a request."""
    parser.add_argument("--model", default="demo")
    parser.add_argument("--per-class", type=int, default=20, help="requests of each class (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--trees", nargs="+", default=trees, help="depth x width x nodes a request (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--profile", help="measured step times; nothing counted here depends on them")


@dataclass(frozen=True)
class EqualTrees:
    """Trees of one depth and width for everybody, and so many nodes a request on average; prompts ride along."""

    depth: int
    width: int
    nodes: int
    prompt_rows: int = 64

    @property
    def deepest(self) -> int:
        return self.depth

    def share(self, demand: Demand) -> RowShare:
        rows = demand.decoding * (1 + self.nodes) + min(demand.prompt, self.prompt_rows)
        return RowShare(True, self.prompt_rows, rows, self.depth, self.width)

    def policy(self, coupled: bool) -> Policy:
        """The likeliest nodes of the batch, whatever the needs."""
        return Policy("equal trees", self, LikelihoodSelection(), per_request=MAX_NODES, coupled=coupled)


@dataclass
class Yield:
    """Sums over the steps of one class's requests, all up to the end of their texts.

    tokens: gained by verification, first tokens excluded. drafting: steps in which a request was drafted for. nodes: verified.
    found: steps in which a child of the root was accepted.
    hoped, accepted, tried: by source, of nodes that were put to the test: the sum of their edges' probabilities, and how many.
    said, right, count: by tenths of the edge's probability.
    """

    tokens: int = 0
    steps: int = 0
    drafting: int = 0
    nodes: int = 0
    found: int = 0
    hoped: dict[int, float] = field(default_factory=dict)
    accepted: dict[int, int] = field(default_factory=dict)
    tried: dict[int, int] = field(default_factory=dict)
    said: list[float] = field(default_factory=lambda: [0.0] * BINS)
    right: list[int] = field(default_factory=lambda: [0] * BINS)
    count: list[int] = field(default_factory=lambda: [0] * BINS)

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / max(1, self.steps)

    @property
    def error(self) -> float:
        """How far what was said is from what came, over the tenths, weighted by how often: the expected calibration error."""
        return sum(abs(s - r) for s, r in zip(self.said, self.right, strict=True)) / max(1, sum(self.count))

    def take(self, outcome: StepOutcome, index: int) -> None:
        """Take in a step of the request that is `index` among those that decode; its tokens are counted by the caller."""
        drafted = outcome.drafted
        self.steps += 1
        self.drafting += outcome.plan.drafting[index] is not None
        for node in [k for k, request in enumerate(drafted.request) if request == index]:
            self.nodes += 1
            if not drafted.reached[node]:
                continue
            accepted, source, edge = drafted.accepted[node], drafted.source[node], drafted.edge_prob[node]
            self.found += accepted and drafted.depth[node] == 1
            self.tried[source] = self.tried.get(source, 0) + 1
            self.hoped[source] = self.hoped.get(source, 0.0) + edge
            self.accepted[source] = self.accepted.get(source, 0) + accepted
            cell = min(int(edge * BINS), BINS - 1)
            self.said[cell] += edge
            self.right[cell] += accepted
            self.count[cell] += 1


def requests_of(parts: Parts, sampling: SamplingParams, per_class: int, seed: int = 0) -> list[Request]:
    """One request for each of the project's first prompts of every class, chat ones through the model's template."""
    made = []
    tokenizer = parts.tokenizer
    for kind in DEMO_MIX.shares:
        for number, text in enumerate(prompts(kind.name)[:per_class]):
            tokens = tokenizer.chat([{"role": "user", "content": text}]) if kind.chat else tokenizer.encode(text)
            made.append(
                Request(
                    id=f"{kind.name} {number}",
                    prompt=tuple(tokens),
                    sampling=sampling,
                    targets=Targets(),
                    seed=seed + number,
                    arrived=0.0,
                    slo_class=kind.name,
                    stop_ids=parts.eos_ids,
                )
            )
    return made


def drafting_yield(parts: Parts, policy: Policy, requests: Sequence[Request]) -> tuple[dict[str, Yield], dict[str, list[int]]]:
    """Run the requests to their ends: what each class gained, and every request's tokens."""
    engine = parts.engine(policy)
    by_class = {str(request.slo_class): Yield() for request in requests}
    class_of = {request.id: str(request.slo_class) for request in requests}
    tokens: dict[str, list[int]] = {request.id: [] for request in requests}
    slots: dict[int, str] = {}
    waiting = {(request.prompt, request.seed): request.id for request in requests}
    for request in requests:
        engine.add(request)
    while (report := engine.step()) is not None:
        if report.outcome is not None:
            plan = report.outcome.plan
            slots |= {p.slot: waiting[p.tokens[: p.prompt_length], p.seed] for p in plan.placed}
            for index, slot in enumerate(plan.decoding):
                by_class[class_of[slots[slot]]].take(report.outcome, index)
        for update in report.updates:
            by_class[class_of[update.id]].tokens += len(update.tokens) - (not tokens[update.id] and bool(update.tokens))
            tokens[update.id] += update.tokens
    return by_class, tokens
