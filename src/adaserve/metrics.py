"""Attainment, goodput, acceptance: one definition for the engine, the server, the benchmarks and the simulator.

Two folds meet in a report: RequestResults (how each request fared) and StepTotals (where the steps' time and rows went). Neither
depends on the order in which requests or steps come.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import compress
from operator import and_
from typing import Any

import numpy as np

from adaserve.request import FinishReason, Request, RequestState, Targets
from adaserve.step import StepOutcome

TTFT_LIMIT_PER_BASELINE = 10.0 / 0.030
"""A request that waits longer for its first token, in baselines, has missed its SLO: 10 s on the paper's machine (30 ms).

Otherwise a TPOT target could be met by making requests queue.
"""

NO_CLASS = "default"
"""How reports name the class of requests that state none."""

COMPLETED = (FinishReason.STOP, FinishReason.LENGTH)
PHASES = ("speculate", "select", "verify", "commit", "schedule")


@dataclass(frozen=True)
class RequestResult:
    """How one request fared. Times in seconds on one clock: the engine's commits, or a client's deliveries.

    first_token_at, last_token_at: None when it got no token. ended: when it finished, or when the measurement did.
    finish: None while it is unfinished, and for a request that was refused.
    baseline: the machine's seconds per token of one request alone, without speculation.
    longest_gap: the longest time between two commits or deliveries of its tokens.
    drafted, accepted, steps: its draft nodes verified, those accepted, and the verifications it took part in.
    """

    id: str
    slo_class: str | None
    targets: Targets
    arrived: float
    first_token_at: float | None
    last_token_at: float | None
    ended: float
    prompt_tokens: int
    output_tokens: int
    finish: FinishReason | None
    baseline: float
    cached_tokens: int = 0
    longest_gap: float = 0.0
    drafted: int = 0
    accepted: int = 0
    steps: int = 0
    preemptions: int = 0

    @classmethod
    def from_state(cls, state: RequestState, now: float, baseline: float) -> "RequestResult":
        """The result of an engine's request at time `now`."""
        request = state.request
        return cls(
            id=request.id,
            slo_class=request.slo_class,
            targets=request.targets,
            arrived=request.arrived,
            first_token_at=state.decoding_since,
            last_token_at=state.last_token_at if state.decoding_since is not None else None,
            ended=now,
            prompt_tokens=len(request.prompt),
            output_tokens=state.produced,
            finish=state.finish,
            baseline=baseline,
            cached_tokens=state.cached_tokens,
            longest_gap=state.longest_gap,
            drafted=state.drafted,
            accepted=state.accepted,
            steps=state.steps,
            preemptions=state.preemptions,
        )

    @classmethod
    def refused(cls, request: Request, now: float, baseline: float) -> "RequestResult":
        """The result of a request that was turned away at time `now`."""
        return cls.from_state(RequestState(request, list(request.prompt)), now, baseline)

    @property
    def completed(self) -> bool:
        """Whether it got everything it asked for: it reached a stop or its length."""
        return self.finish in COMPLETED and self.first_token_at is not None

    @property
    def ttft(self) -> float | None:
        """Seconds from arrival to the first token; None when there was none."""
        return None if self.first_token_at is None else self.first_token_at - self.arrived

    @property
    def tpot(self) -> float | None:
        """(time of last token - time of first token) / (tokens - 1): 0 for one token, None for none."""
        if self.first_token_at is None or self.last_token_at is None:
            return None
        return (self.last_token_at - self.first_token_at) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0

    @property
    def latency(self) -> float:
        """Seconds from arrival to the end."""
        return self.ended - self.arrived

    @property
    def tpot_attained(self) -> bool | None:
        """Whether it completed within its TPOT target, the paper's measure; None when it states none."""
        return _met(self.targets.tpot, self.tpot if self.completed else None)

    @property
    def ttft_attained(self) -> bool | None:
        """Whether it completed and its first token came within its TTFT target; None when it states none."""
        return _met(self.targets.ttft, self.ttft if self.completed else None)

    @property
    def attained(self) -> bool | None:
        """Whether it completed, met every target that it states, and did not wait beyond all reason for its first token.

        None when it states no target. Refused, failed, cancelled and unfinished requests with a target have missed it.
        """
        stated = [met for met in (self.tpot_attained, self.ttft_attained) if met is not None]
        if not stated:
            return None
        return all(stated) and self.ttft is not None and self.ttft <= TTFT_LIMIT_PER_BASELINE * self.baseline


def _met(target: float | None, value: float | None) -> bool | None:
    return None if target is None else value is not None and value <= target


@dataclass
class StepTotals:
    """Sums over steps; `add` takes in one step, `+` joins two totals.

    seconds: by phase. tokens, decodes: tokens gained by decoding requests, and how many times a request took part.
    drafted, accepted: verified draft nodes and accepted ones by depth. reached: by depth, nodes whose parent was accepted.
    expected: sum of f over the verified nodes, what the drafter promised. A failed request counts in none of these.
    selected: nodes by the phase that chose them, "slo" or "throughput".
    error: sum over steps of |predicted / measured - 1|; timed: over how many.
    """

    steps: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    rows: int = 0
    tokens: int = 0
    decodes: int = 0
    drafted: Counter[int] = field(default_factory=Counter)
    reached: Counter[int] = field(default_factory=Counter)
    accepted: Counter[int] = field(default_factory=Counter)
    expected: float = 0.0
    selected: Counter[str] = field(default_factory=Counter)
    error: float = 0.0
    timed: int = 0

    def add(self, outcome: StepOutcome, slo_selected: Sequence[int] = ()) -> None:
        """Take in one step. slo_selected: nodes that the SLO phase chose for each decoding request; none without an SLO phase."""
        plan, drafted, times = outcome.plan, outcome.drafted, outcome.times
        self.steps += 1
        self.rows += outcome.shape.rows
        for phase in PHASES:
            self.seconds[phase] += getattr(times, phase)
        if times.total > 0:
            self.error += abs(plan.predicted / times.total - 1)
            self.timed += 1
        failed = set(outcome.failed)
        for slot, tokens in zip(plan.decoding, outcome.tokens, strict=True):
            if slot not in failed:
                self.tokens += len(tokens)
                self.decodes += 1
        sound = [plan.decoding[i] not in failed for i in drafted.request] if failed else [True] * len(drafted.request)
        self.drafted.update(compress(drafted.depth, sound))
        self.reached.update(compress(drafted.depth, map(and_, drafted.reached, sound)))
        self.accepted.update(compress(drafted.depth, map(and_, drafted.accepted, sound)))
        self.expected += sum(compress(drafted.path_prob, sound))
        for_slo = sum(slo_selected)
        self.selected.update(slo=for_slo, throughput=len(drafted.depth) - for_slo)

    def __add__(self, other: "StepTotals") -> "StepTotals":
        return StepTotals(
            self.steps + other.steps,
            {phase: self.seconds[phase] + other.seconds[phase] for phase in PHASES},
            self.rows + other.rows,
            self.tokens + other.tokens,
            self.decodes + other.decodes,
            self.drafted + other.drafted,
            self.reached + other.reached,
            self.accepted + other.accepted,
            self.expected + other.expected,
            self.selected + other.selected,
            self.error + other.error,
            self.timed + other.timed,
        )

    @property
    def mean_tokens_per_step(self) -> float | None:
        """Tokens that a decoding request gains per step, its extra token included; None before any did."""
        return self.tokens / self.decodes if self.decodes else None

    @property
    def mean_accepted(self) -> float | None:
        """Draft tokens accepted per decoding request and step; None before any decoded."""
        return sum(self.accepted.values()) / self.decodes if self.decodes else None

    @property
    def step_time_error(self) -> float | None:
        """Mean of |predicted / measured - 1| over steps; None without measured steps."""
        return self.error / self.timed if self.timed else None

    @property
    def step_share(self) -> dict[str, float]:
        """Each phase's share of all step time, 0 where no time was measured."""
        total = sum(self.seconds.values())
        return {phase: self.seconds[phase] / total if total > 0 else 0.0 for phase in PHASES}


@dataclass(frozen=True)
class ClassReport:
    """One class of requests in a report; None where there is nothing to take a share or a percentile of."""

    requests: int
    attainment: float | None
    tpot_p50_ms: float | None
    tpot_p99_ms: float | None
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None


@dataclass(frozen=True)
class PolicyReport:
    """One run of one policy: an entry of `runs` in report.json, field by field. None where nothing was measured."""

    policy: str
    slo_attainment: float | None
    tpot_attainment: float | None
    goodput_tokens_per_s: float
    throughput_tokens_per_s: float
    requests: int
    completed: int
    per_class: dict[str, ClassReport]
    mean_tokens_per_step: float | None
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    refused: int
    mean_accepted: float | None
    step_share: dict[str, float]
    step_time_error: float | None

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return asdict(self)


def summarize(
    policy: str,
    results: Sequence[RequestResult],
    refused: Sequence[RequestResult] = (),
    steps: StepTotals | None = None,
    window: float | None = None,
) -> PolicyReport:
    """Fold a run into its report.

    results: every request that was handed in, however it ended. refused: those turned away before that; these, and those that the
        policy refused, count as arrived and as missed.
    steps: None when the server is not ours to look into.
    window: seconds that rates divide by; None for first arrival to last completion.
    Percentiles are over requests that got a token, so read them beside the attainment, which counts all.
    """
    everyone = [*results, *refused]
    seconds = span(everyone) if window is None else window
    classes = sorted({_class_of(r) for r in everyone})
    totals = steps or StepTotals()
    return PolicyReport(
        policy=policy,
        slo_attainment=share(r.attained for r in everyone),
        tpot_attainment=share(r.tpot_attained for r in everyone),
        goodput_tokens_per_s=_rate((r.output_tokens for r in everyone if r.attained), seconds),
        throughput_tokens_per_s=_rate((r.output_tokens for r in everyone), seconds),
        requests=len(everyone),
        completed=sum(r.completed for r in everyone),
        per_class={name: _class_report([r for r in everyone if _class_of(r) == name]) for name in classes},
        mean_tokens_per_step=totals.mean_tokens_per_step,
        ttft_p50_ms=percentile_ms((r.ttft for r in everyone), 50),
        ttft_p99_ms=percentile_ms((r.ttft for r in everyone), 99),
        refused=len(refused) + sum(r.finish is FinishReason.REFUSED for r in results),
        mean_accepted=totals.mean_accepted,
        step_share=totals.step_share,
        step_time_error=totals.step_time_error,
    )


def share(verdicts: Iterable[bool | None]) -> float | None:
    """The share of true verdicts, leaving out None; None when none is left."""
    stated = [verdict for verdict in verdicts if verdict is not None]
    return sum(stated) / len(stated) if stated else None


def percentile_ms(seconds: Iterable[float | None], q: float) -> float | None:
    """The q-th percentile in milliseconds, linear between order statistics, leaving out None; None when none is left."""
    known = [value for value in seconds if value is not None]
    return float(np.percentile(known, q)) * 1e3 if known else None


def span(results: Sequence[RequestResult]) -> float:
    """Seconds from the first arrival to the last completion; to the last token where nothing completed, 0 without tokens."""
    completed = [r for r in results if r.completed] or results
    last = [r.last_token_at for r in completed if r.last_token_at is not None]
    return max(last) - min(r.arrived for r in results) if last else 0.0


def _class_of(result: RequestResult) -> str:
    return NO_CLASS if result.slo_class is None else result.slo_class


def _class_report(results: Sequence[RequestResult]) -> ClassReport:
    tpots, ttfts = [r.tpot for r in results], [r.ttft for r in results]
    return ClassReport(
        requests=len(results),
        attainment=share(r.attained for r in results),
        tpot_p50_ms=percentile_ms(tpots, 50),
        tpot_p99_ms=percentile_ms(tpots, 99),
        ttft_p50_ms=percentile_ms(ttfts, 50),
        ttft_p99_ms=percentile_ms(ttfts, 99),
    )


def _rate(tokens: Iterable[int], seconds: float) -> float:
    return sum(tokens) / seconds if seconds > 0 else 0.0
