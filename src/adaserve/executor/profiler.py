"""Measures the step-time curves of an executor: what a Profile is made of.

Every point is a real pass of the real executor on synthetic requests: random known tokens, random trees. The host's part of a
step and the draw are inside the measured phases, as they are when serving.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median, pstdev

import torch

from adaserve.executor.executor import Executor
from adaserve.request import SamplingParams
from adaserve.step import Chunk, Limits, PageGrant, Placement, StepOutcome, StepPlan
from adaserve.tree import MAX_NODES, ROOT, CandidateTree

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512)
"""Rows of the target's pass that are timed. Beyond MANY_ROWS only while a pass takes less than LONGEST times one row's."""
EDGES = (144, 224, 288, 352, 448)
"""Rows that are timed besides where passes come in a few sizes: a line between the others would hide how steep its stairs are."""
TILES = (20, 40)
"""Rows that are timed besides where they do not: a matrix unit takes rows by 16, and the first beyond may cost as much as ten."""
PROMPT_ROWS = (8, 16, 32, 64, 128, 256)
"""Rows of the passes that read a prompt beside one request."""
MANY_ROWS = 256
LONGEST = 6.0
DRAFT_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
SHORT, LONG = 64, 448
CROWD = 32
"""Requests whose contexts are compared: so many that reading them is limited by memory, as it is when a batch is full."""
ROUNDS = 3
"""All is measured so often, and the least that came counts: somebody else's work slows a machine for seconds or minutes, and a
curve of which one half was measured meanwhile would say that more rows cost what they do not."""
REPEATS = 3
"""Steps of a round."""
WARM_UP = 2
"""Steps not counted; the first of them places the requests."""
DEEP = 3
"""Passes of the speculations from which a further pass's time is told."""
LEAST_SHARE = 0.1
"""Of the first pass, that a further one takes at least: what is a difference of measurements may come out as anything."""


@dataclass(frozen=True)
class Curves:
    """Measured seconds: by rows of the target's pass and of draft passes, and what a paged token costs in each.

    draft, draft_next: a speculation of one pass, and what each further pass adds.
    prompt_saves: what a pass takes less when all rows but one are a prompt's. after_draft: what one takes more after a draft.
    overhead: all the rest of a step. spread: standard deviation of like passes over their median, the median of all points.
    """

    verify: Mapping[int, float]
    attention: float
    draft: Mapping[int, float]
    draft_attention: float
    overhead: float
    spread: float
    draft_next: Mapping[int, float]
    prompt_saves: Mapping[int, float]
    after_draft: float


@dataclass(frozen=True)
class _Round:
    """What one round measured, as it came: Curves that include what the short context costs, and speculations of DEEP passes.

    prompt: a pass of which all rows but one are a prompt's, by rows. after: what passes of the target took longer after a draft.
    """

    verify: Mapping[int, float]
    attention: float
    draft: Mapping[int, float]
    deep: Mapping[int, float]
    draft_attention: float
    overhead: float
    spread: float
    prompt: Mapping[int, float]
    after: float


class Profiler:
    """Times an executor that nothing else uses meanwhile.

    slots, pages, page_size, length, device: what the executor was made with. drafts: whether it has a draft model.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        slots: int,
        pages: int,
        page_size: int,
        length: int,
        vocab_size: int,
        drafts: bool,
        device: torch.device,
    ) -> None:
        self._executor = executor
        self._device = device
        self._slots = slots
        self._pages = pages
        self._page_size = page_size
        self._length = length
        self._vocab_size = vocab_size
        self._drafts = drafts
        self._random = random.Random(0)

    def curves(self, progress: Callable[[str], None]) -> Curves:
        """Measure everything; `progress` hears a line now and then."""
        rounds = [self._round(partial(_tell, progress, number)) for number in range(1, ROUNDS + 1)]
        verify, draft, deep = (never_falling(least([getattr(r, name) for r in rounds])) for name in ("verify", "draft", "deep"))
        slope, draft_slope = median(r.attention for r in rounds), median(r.draft_attention for r in rounds)
        short = min(SHORT, self._length // 4)
        prompt = least([r.prompt for r in rounds])
        # The curves are for no context at all; what the short one cost comes off, but never more than half.
        return Curves(
            verify={rows: max(t - slope * short * min(rows, self._slots), t / 2) for rows, t in verify.items()},
            attention=slope,
            draft={rows: max(t - draft_slope * short * rows, t / 2) for rows, t in draft.items()},
            draft_next={rows: max(t - draft_slope * short * rows, t / 2) for rows, t in further(draft, deep).items()},
            draft_attention=draft_slope,
            prompt_saves=savings(
                {rows: verify[rows] - slope * short * min(rows, self._slots) for rows in prompt},
                {rows: t - slope * (max(rows, short) + rows - 1) for rows, t in prompt.items()},
            ),
            after_draft=max(0.0, min(r.after for r in rounds)),
            overhead=min(r.overhead for r in rounds),
            spread=median(r.spread for r in rounds),
        )

    def _round(self, progress: Callable[[str], None]) -> _Round:
        """Measure everything once."""
        short, long = min(SHORT, self._length // 4), min(LONG, self._length // 2)
        verify: dict[int, float] = {}
        spreads: list[float] = []
        overheads: list[float] = []
        for rows in sorted({*ROWS, *(EDGES if self._executor.padding.pays_for_room else TILES)}):
            requests = min(rows, self._slots, self._fitting(short))
            if rows > requests * (1 + MAX_NODES):
                break
            times = [o.times for o in self._time(requests, short, rows=rows)]
            verify[rows] = median(t.verify for t in times)
            spreads.append(pstdev(t.verify for t in times) / verify[rows])
            overheads.append(median(t.commit + t.select for t in times))
            progress(f"target, {rows} rows: {verify[rows] * 1e3:.1f} ms")
            if rows >= MANY_ROWS and verify[rows] > LONGEST * verify[1]:
                break
        requests = min(CROWD, self._slots, self._fitting(long))
        slope = self._context_cost(
            requests, short, long, lambda context: median(o.times.verify for o in self._time(requests, context, rows=requests))
        )
        read = [rows for rows in PROMPT_ROWS if rows in verify and rows <= long]
        read = [rows for rows in read if min(self._slots, self._fitting(max(rows, short))) > 1]
        prompt = {rows: median(o.times.verify for o in self._read(rows)) for rows in read}
        draft: dict[int, float] = {}
        deep: dict[int, float] = {}
        after: list[float] = []
        draft_slope = 0.0
        if self._drafts:
            for rows in DRAFT_ROWS:
                if rows > min(self._slots, self._fitting(short)):
                    break
                one, many = (self._time(rows, short, rows=rows, depth=depth) for depth in (1, DEEP))
                draft[rows], deep[rows] = (median(o.times.speculate for o in steps) for steps in (one, many))
                after.append(median(o.times.verify for o in (*one, *many)) - verify[rows])
                progress(f"draft, {rows} rows: {draft[rows] * 1e3:.1f} ms, {DEEP} passes {deep[rows] * 1e3:.1f} ms")
            draft_slope = self._context_cost(
                requests,
                short,
                long,
                lambda context: median(o.times.speculate for o in self._time(requests, context, rows=requests, depth=1)),
            )
        return _Round(verify, slope, draft, deep, draft_slope, median(overheads), median(spreads), prompt, median(after or [0.0]))

    def _fitting(self, context: int) -> int:
        """How many requests of this context the pages hold."""
        return max(1, self._pages // (-(-(context + 2 + MAX_NODES) // self._page_size)))

    @staticmethod
    def _context_cost(requests: int, short: int, long: int, time: Callable[[int], float]) -> float:
        return max(0.0, (time(long) - time(short)) / max(1, requests * (long - short)))

    def _time(self, requests: int, context: int, *, rows: int, depth: int = 0) -> list[StepOutcome]:
        """Run REPEATS like steps after a warm-up: `requests` roots, and nodes up to `rows` rows of the target's pass.

        depth: of a speculation that comes before it, none of which is verified.
        """
        outcomes = []
        for repeat in range(REPEATS + WARM_UP):
            plan = self._plan(requests, context + repeat, depth, nodes=rows - requests, first=repeat == 0)
            candidates = self._executor.speculate(plan)
            if not depth:
                candidates = self._candidates(requests, rows)
            chosen = candidates.path_prob > (1.0 if depth else 0.0)  # a speculation is timed alone
            outcomes.append(self._executor.commit(plan, self._executor.verify(plan, candidates, chosen)))
        return outcomes[WARM_UP:]

    def _read(self, rows: int) -> list[StepOutcome]:
        """Run REPEATS like steps after a warm-up, of one root and a prompt's first rows, `rows` together."""
        outcomes = []
        context = max(rows, min(SHORT, self._length // 4))
        nobody = CandidateTree.empty(1, self._device)
        for repeat in range(REPEATS + WARM_UP):
            both = self._plan(2, context + repeat, 0, nodes=0, first=repeat == 0)
            plan = replace(
                both,
                decoding=both.decoding[:1],
                need=both.need[:1],
                room=both.room[:1],
                temperature=both.temperature[:1],
                drafting=both.drafting[:1],
                chunks=(Chunk(1, 0, rows - 1),),
            )
            self._executor.speculate(plan)
            verdict = self._executor.verify(plan, nobody, nobody.token.bool())
            outcomes.append(self._executor.commit(plan, verdict))
        return outcomes[WARM_UP:]

    def _plan(self, requests: int, context: int, depth: int, nodes: int, first: bool) -> StepPlan:
        """A step of requests with `context` known tokens each; the `first` of a row of steps places them."""
        slots = tuple(range(requests))
        fresh = slots if first else ()
        each = -(-(context + 2 + MAX_NODES) // self._page_size)
        sampling = SamplingParams(temperature=0.0)
        return StepPlan(
            released=fresh,
            placed=tuple(
                Placement(slot, tuple(self._random.choices(range(self._vocab_size), k=context)), context - 1, sampling, 0, 0, ())
                for slot in fresh
            ),
            grants=tuple(PageGrant(slot, 0, tuple(range(slot * each, (slot + 1) * each))) for slot in fresh),
            decoding=slots,
            need=(0.0,) * requests,
            room=(max(depth, 1),) * requests,
            temperature=(0.0,) * requests,
            drafting=tuple(Chunk(slot, context - 1, 1, draws=True) if depth else None for slot in slots),
            chunks=(),
            catch_up=(),
            limits=Limits(nodes, 0, 1),
            depth=max(depth, 1),
            width=1,
            predicted=0.0,
        )

    def _candidates(self, requests: int, rows: int) -> CandidateTree:
        """Trees of depth one whose nodes, with the roots, make up exactly `rows` rows."""
        nodes = [(rows - requests) // requests + (i < (rows - requests) % requests) for i in range(requests)]
        columns = max(nodes)
        column = torch.arange(columns, device=self._device)
        real = column < torch.tensor(nodes, device=self._device)[:, None]  # [n, N]
        shape = (requests, columns)
        return CandidateTree(
            token=(column % self._vocab_size).expand(shape),
            parent=torch.full(shape, ROOT, device=self._device),
            depth=torch.ones(shape, dtype=torch.int64, device=self._device),
            path_prob=torch.where(real, 0.5, 0.0).double(),
            source=torch.zeros(shape, dtype=torch.int64, device=self._device),
        )


def _tell(progress: Callable[[str], None], number: int, line: str) -> None:
    progress(f"{line} (round {number} of {ROUNDS})")


def further(first: Mapping[int, float], deep: Mapping[int, float]) -> dict[int, float]:
    """The time of each pass after the first, by rows; first, deep: of speculations of one pass, and of DEEP."""
    found = {rows: max((deep[rows] - time) / (DEEP - 1), LEAST_SHARE * time) for rows, time in first.items()}
    return never_falling(found)


def savings(trees: Mapping[int, float], prompt: Mapping[int, float]) -> dict[int, float]:
    """What passes over a prompt's rows take less than over as many of trees; at most half, for the rest is a disturbance.

    A row alone saves nothing: its scores are needed.
    """
    found, most = {1: 0.0}, 0.0
    for rows, seconds in prompt.items():
        most = max(most, min(trees[rows] - seconds, trees[rows] / 2))
        found[rows] = most
    return found


def least(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The least time by rows, of curves that need not reach equally far; of rows that not all of them have, what there is."""
    return {
        rows: min(curve[rows] for curve in curves if rows in curve) for rows in sorted({r for curve in curves for r in curve})
    }


def never_falling(curve: Mapping[int, float]) -> dict[int, float]:
    """Times by rows without the disturbances that can be told: no pass costs more than one of more rows, for padding would do."""
    return {rows: min(time for more, time in curve.items() if more >= rows) for rows in curve}
