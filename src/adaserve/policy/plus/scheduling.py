"""Scheduling of `adaserve+`: depth, nodes and prompt rows from what they cost and bring in this very step."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from adaserve.latency import LatencyModel
from adaserve.padding import most_prompt
from adaserve.policy.adaptive import AdaptiveScheduling
from adaserve.policy.plus.calibration import Calibration
from adaserve.policy.plus.offers import Offer, best_depth, offers_of, worth
from adaserve.policy.plus.parts import PlusConstants, PlusParts
from adaserve.policy.plus.room import Wish, best_room
from adaserve.policy.plus.slack import bearable, best_chunk, is_lost, paying_rows, strained, thrifty, waited
from adaserve.policy.plus.strain import Strain
from adaserve.policy.plus.yields import Yields
from adaserve.policy.policy import Demand, RowShare, Scene
from adaserve.request import Request, RequestState
from adaserve.step import READY_LAG, StepOutcome, StepShape
from adaserve.tree import MAX_NODES


class PlusScheduling:
    """Shares out a step's rows by what they bring; parts that are left out fall back to the paper's rule.

    paper: that rule, and a depth and width that the user fixed. strain: is told of every step; None where nobody asks.
    budget: most rows a step, if the user says so.
    """

    def __init__(
        self,
        parts: PlusParts,
        constants: PlusConstants,
        paper: AdaptiveScheduling,
        calibration: Calibration,
        strain: Strain | None,
        budget: int | None = None,
    ) -> None:
        self._parts = parts
        self._constants = constants
        self._paper = paper
        self._calibration = calibration
        self._strain = strain
        self._budget = budget
        self._yields = Yields(self.deepest, constants.prompt_worth, constants.learning)

    @property
    def deepest(self) -> int:
        learned = self._parts.priced and self._paper.fixed_depth is None
        return self._constants.depth_max if learned else self._paper.deepest

    @property
    def _least(self) -> int:
        """Prompt rows that are read in any case."""
        return max(1, round(self._constants.prompt_least * self._paper.constants.prompt_rows))

    def learn(self, outcome: StepOutcome) -> None:
        """Take in what a step brought."""
        self._yields.learn(outcome)
        if self._parts.calibrated:
            self._calibration.learn(outcome.drafted, outcome.plan.temperature)

    def share(self, demand: Demand) -> RowShare:
        """Decide the step's rows; by the paper's rule where only the counts are known."""
        scene, fixed = demand.scene, self._paper.share(demand)
        if scene is None:
            return fixed
        context = sum([len(s.tokens) for s in scene.decoding])
        lost = self._lost(scene, context) if self._parts.attaining else frozenset()
        # Time that drafts for them take is taken from others, if there are any. But who decodes plainly keeps a slot for longer:
        # where slots or pages are short, others come late, all at once, and make steps so long that more are lost.
        alone = not (scene.backlog or scene.waiting) and len(lost) == len(scene.decoding)
        spared = frozenset() if alone or scene.crowded else lost
        aim = self._constants.pace if self._parts.attaining else 1.0
        drafting = _others(scene.decoding, spared)
        depth, width, price = fixed.depth, fixed.width, None
        if self._parts.priced:
            width = self._width(drafting) if self._paper.fixed_width is None else width
            prompt = min(demand.prompt, self._constants.offered_rows)
            offers, price = offers_of(scene, self._yields, drafting, width, prompt), self._yields.seconds_per_token
            if scene.decoding:
                price = worth(offers, price, bool(scene.backlog or scene.waiting))
                if self._paper.fixed_depth is None:
                    depth = best_depth(offers, price)
                    if depth and (unread := self._unread(scene, context, lost, offers, prompt, drafting, width, aim)):
                        spared |= unread
                        drafting = _others(scene.decoding, spared)
                        depth = best_depth(offers_of(scene, self._yields, drafting, width, prompt), price) if drafting else 0
            nodes = round(drafting * sum(self._yields.nodes[:depth]))
        else:
            nodes = max(0, fixed.budget - demand.decoding - min(fixed.prompt_rows, demand.prompt))
        pursuing = [s for s in scene.decoding if s.request.id not in lost] if lost else scene.decoding
        base, gain = self._without_prompts(scene, context, depth, width, nodes), 1 + sum(self._yields.accepted[:depth])
        if self._strain is not None:
            self._strain.note(pursuing, base, gain, len(scene.decoding) + len(scene.backlog))
        prompt_rows = fixed.prompt_rows
        if self._parts.slack_chunks:
            prompt_rows = self._prompt_rows(scene, demand.prompt, pursuing, base, gain, nodes)
        catch_up = self._catch_up(scene, context, pursuing, spared, depth) if depth else 0
        if price is None:
            return RowShare(True, prompt_rows, fixed.budget, depth, width, pace=aim, lost=lost, spared=spared, catch_up=catch_up)
        prompt, most = min(prompt_rows, demand.prompt), 0
        if depth:
            wish = Wish(demand.decoding, nodes, prompt, min(prompt, self._least))
            room = best_room(wish, scene.padding, scene.latency, self._yields.brought, price, self._constants.prompt_worth)
            if room.prompt < prompt:
                prompt = prompt_rows = room.prompt
            most = room.nodes
        # Prompt rows that take the place of padding cost nothing.
        prompt = most_prompt(scene.padding, scene.padding.trees(demand.decoding, nodes, most), prompt, demand.prompt)
        rows = scene.padding.whole(scene.padding.trees(demand.decoding, most, most), prompt)
        return RowShare(
            decode=True,
            prompt_rows=max(prompt_rows, prompt),
            budget=rows if self._budget is None else min(rows, self._budget),
            depth=depth,
            width=width,
            nodes=nodes,
            pace=aim,
            lost=lost,
            spared=spared,
            token_price=price,
            catch_up=catch_up,
        )

    def hopeless(self, request: Request, scene: Scene) -> bool:
        """Whether a newcomer cannot attain even if it is favoured above all who are here already, as long as they are.

        Its prompt alone would take longer than its TTFT target, or its tokens come slower than its TPOT target although nobody
        but it were drafted for. scene.decoding: all who run or wait, as if they decoded.
        """
        targets, prompt, latency = request.targets, len(request.prompt), scene.latency
        most = self._constants.idle_prompt_rows
        if targets.ttft is not None:
            pieces = ((at, min(most, prompt - at)) for at in range(0, prompt, most))
            reading = sum(latency.predict(StepShape(rows, at, prompt=rows)) for at, rows in pieces)
            if reading > targets.ttft:
                return True
        if targets.tpot is None:
            return False
        context = sum([len(s.tokens) for s in scene.decoding]) + prompt
        return self._swiftest(scene, len(scene.decoding) + 1, context) > targets.tpot

    def _width(self, drafting: int) -> int:
        if not self._parts.trees:
            return 1
        c = self._constants
        return max(1, min(c.width_max, c.draft_rows // max(drafting, 1), MAX_NODES // max(self.deepest, 1)))

    def _lost(self, scene: Scene, context: int) -> frozenset[str]:
        """Who cannot attain any more. context: tokens of those who decode, here and below."""
        plain = scene.latency.predict(StepShape(len(scene.decoding), context))
        doubtful = [s for s in scene.decoding if is_lost(s, scene.now, plain)]
        if not doubtful:  # nobody is lost who attains without drafts
            return frozenset()
        best = self._swiftest(scene, len(scene.decoding), context)
        return frozenset([s.request.id for s in doubtful if is_lost(s, scene.now, best)])

    def _swiftest(self, scene: Scene, decoding: int, context: int) -> float:
        """Seconds a token for a request that is drafted for alone, beside the others' roots: as fast as it can still become."""
        gains = list(accumulate(self._yields.accepted, initial=1.0))
        nodes = [round(total) for total in accumulate(self._yields.nodes, initial=0.0)]
        seconds = scene.latency.by_depth([scene.padding.trees(decoding, k, k) for k in nodes], 1, 1, context=context)
        return min([time / gain for time, gain in zip(seconds, gains, strict=True)])

    def _unread(
        self,
        scene: Scene,
        context: int,
        lost: frozenset[str],
        offers: list[Offer],
        beside: int,
        drafting: int,
        width: int,
        aim: float,
    ) -> frozenset[str]:
        """Requests that the draft model is behind with, and need not catch up with.

        They attain without drafts, or not at all, and until their end these save less time than reading their tokens takes.
        offers: as made beside so many prompt rows.
        """
        behind = [s for s in (*scene.decoding, *scene.backlog) if len(s.tokens) - s.draft_computed > READY_LAG]
        if not (behind and drafting):
            return frozenset()
        alone = offers_of(scene, self._yields, drafting, width, 0) if beside else offers
        each = [offer.seconds / offer.tokens for offer in alone]
        saved = each[0] - min(each)
        rows, prompt = scene.padding.trees(len(scene.decoding), 0, 0), self._least if scene.backlog else 0
        plain = scene.latency.predict(StepShape(rows + prompt, context, prompt=prompt))

        def unread(state: RequestState) -> bool:
            lag, tpot = len(state.tokens) - state.draft_computed, state.request.targets.tpot
            reading = scene.latency.reading(lag)
            if tpot is None or state.request.id in lost or saved * state.remaining > reading:
                return saved * state.remaining <= reading
            most = bearable(state, scene.now, 1.0, aim)
            return plain <= (aim * tpot if most is None else most)

        return frozenset([s.request.id for s in behind if unread(s)])

    def _without_prompts(self, scene: Scene, context: int, depth: int, width: int, nodes: int) -> float:
        """Seconds of the step if it read no prompts."""
        n = len(scene.decoding)
        passes = (n, *[n * width] * (depth - 1)) if depth else ()
        return scene.latency.predict(StepShape(scene.padding.trees(n, nodes, nodes), context, passes))

    def _prompt_rows(
        self, scene: Scene, waiting: int, pursuing: Sequence[RequestState], base: float, gain: float, nodes: int
    ) -> int:
        """As many prompt rows as pay, and bring more first tokens in time than they make running requests late; a few always.

        waiting: prompt rows that there are. pursuing: those who decode and can attain. base: seconds of the step without prompts.
        gain: tokens that a request has of it.
        """
        c = self._constants
        if not waiting:
            return 0
        if not scene.decoding:
            return c.idle_prompt_rows
        rows = scene.padding.trees(len(scene.decoding), nodes, nodes)
        most, stretch = c.prompt_rows, c.prompt_stretch
        if all(bearable(s, scene.now, 1.0, c.pace) is None for s in pursuing):  # nobody has a target to keep
            most, stretch = max(most, min(c.idle_prompt_rows, scene.latency.longest - rows)), c.free_stretch
        most = min(most, waiting)
        least = min(most, self._least)
        limit = stretch * scene.latency.baseline
        costs = _rising_costs(scene.latency, rows, most)
        fits = int(costs.searchsorted(limit, side="right")) - 1
        token, by_price = self._yields.seconds_per_token, max(fits, least)
        if token is not None:
            beside = len(scene.decoding) + min(len(scene.decoding), nodes)
            by_price = paying_rows(scene.latency, beside, c.prompt_worth, token, by_price, most)
        fitting = costs[: min(fits, by_price) + 1]
        slack = strained(pursuing, scene.now, base, gain, c.pace)
        row_worth = waited(scene.backlog, scene.now, scene.latency.baseline) ** c.patience * len(scene.backlog) / waiting
        wished = max(best_chunk(fitting, slack, row_worth), least)
        return wished if wished == waiting else max(least, thrifty(costs, wished, c.chunk_part, c.chunk_cheap))

    def _catch_up(self, scene: Scene, context: int, pursuing: Sequence[RequestState], spared: frozenset[str], depth: int) -> int:
        """Rows that a draft model reads for who decodes and is behind: as far as who is drafted for bears the delay.

        pursuing: those who decode and can attain; for others it reads no more than it reads in any case, unless there are none.
        """
        drafted = [s for s in pursuing or scene.decoding if s.request.id not in spared]
        lags = [len(s.tokens) - s.draft_computed for s in drafted]
        behind = sum([lag for lag in lags if lag > READY_LAG])
        c = self._constants
        if behind <= c.read_least:
            return c.read_least
        others = [s for s, lag in zip(drafted, lags, strict=True) if lag <= READY_LAG]
        latency, ready = scene.latency, len(others)
        base = latency.predict(StepShape(len(scene.decoding), context, (ready,) * depth if ready else ()))
        gain = 1 + sum(self._yields.accepted[:depth])
        borne = [seconds for seconds, _ in strained(others if pursuing else (), scene.now, base, gain, c.pace)]
        longest = latency.reading(ready + c.read_least) + max(c.catching_up * base, min(borne, default=base))
        rows = range(c.read_least, min(behind, c.read_most) + 1)
        return rows[max(1, bisect_right(rows, longest, key=lambda more: latency.reading(ready + more))) - 1]


def _rising_costs(latency: LatencyModel, rows: int, most: int) -> NDArray[np.float64]:
    """Seconds that 0, 1, ... prompt rows add, never less than fewer do: what they save may be more than the next one costs."""
    return np.maximum.accumulate(latency.added_by_prompts(rows, most, 1.0))


def _others(states: Sequence[RequestState], spared: frozenset[str]) -> int:
    """How many are not among the spared."""
    return len(states) - sum([s.request.id in spared for s in states]) if spared else len(states)
