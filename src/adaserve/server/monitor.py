"""Prometheus metrics: ours under `adaserve:`, and the same values under vLLM's names, so that existing boards work.

One registry per server; nothing is registered globally.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from adaserve.metrics import NO_CLASS, RequestResult
from adaserve.request import FinishReason, Request
from adaserve.server.messages import StatsNews, TokenNews

TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
LATENCY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300)
STEP_BUCKETS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
ACCEPTED_BUCKETS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)


@dataclass(frozen=True)
class ClassMeters:
    """The series of one SLO class that change in every step."""

    accepted: Histogram
    for_slo: Counter
    for_throughput: Counter


class Monitor:
    """Counts what the engine's news say. All methods belong to the HTTP process's event loop.

    model: the name under which vLLM's metrics are labelled. classes: SLO classes, so that their series exist from the start.
    """

    def __init__(self, model: str, classes: tuple[str, ...] = ()) -> None:
        self._registry = registry = CollectorRegistry()
        self._model = model
        self._attained: dict[str, tuple[int, int]] = {}
        self._delivered: dict[str, float] = {}
        self._latency_sum = 0.0
        self._latency_count = 0

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, ["model_name"], registry=registry).labels(model)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["model_name"], registry=registry).labels(model)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, ["model_name"], buckets=buckets, registry=registry).labels(model)

        self.running = gauge("vllm:num_requests_running", "Requests that hold a slot.")
        self.waiting = gauge("vllm:num_requests_waiting", "Requests that wait for a slot.")
        self.kv_usage = gauge("vllm:kv_cache_usage_perc", "Share of the KV pages in use; 1 is all of them.")
        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of requests that got their first token.")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens produced.")
        self.success = Counter(
            "vllm:request_success", "Requests that ended by themselves.", ["model_name", "finished_reason"], registry=registry
        )
        self.ttft = histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", TTFT_BUCKETS)
        self.inter_token = histogram(
            "vllm:inter_token_latency_seconds", "Time between the steps that brought a request tokens.", TOKEN_BUCKETS
        )
        self.tpot = histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time per output token after the first, by request.", TOKEN_BUCKETS
        )
        self.latency = histogram("vllm:e2e_request_latency_seconds", "Arrival to end.", LATENCY_BUCKETS)
        self.drafts = counter("vllm:spec_decode_num_drafts", "Verifications of draft trees.")
        self.draft_tokens = counter("vllm:spec_decode_num_draft_tokens", "Draft tokens verified.")
        self.accepted_tokens = counter("vllm:spec_decode_num_accepted_tokens", "Draft tokens accepted.")

        self.slo_requests = Counter(
            "adaserve:slo_requests", "Ended requests by SLO class and outcome.", ["class", "outcome"], registry=registry
        )
        self.attainment = Gauge(
            "adaserve:slo_attainment_ratio", "Share of ended requests that met all their targets.", ["class"], registry=registry
        )
        self.budget = Gauge("adaserve:verify_budget_rows", "Rows that the last step might spend.", registry=registry)
        self.budget_used = Gauge("adaserve:verify_budget_used_rows", "Rows that the last step spent.", registry=registry)
        self.selected = Counter(
            "adaserve:selected_tokens",
            "Draft tokens chosen for verification, by the phase that chose them.",
            ["class", "phase"],
            registry=registry,
        )
        self.accepted_per_step = Histogram(
            "adaserve:accepted_tokens_per_step",
            "Tokens that a verification brought a request, the target's own token included.",
            ["class"],
            buckets=ACCEPTED_BUCKETS,
            registry=registry,
        )
        self.step_seconds = Histogram(
            "adaserve:step_seconds", "Duration of a step's phases.", ["phase"], buckets=STEP_BUCKETS, registry=registry
        )
        self.step_time_error = Gauge(
            "adaserve:step_time_error_ratio", "Recent mean of |predicted / measured - 1| of step times.", registry=registry
        )
        self.refused = Counter("adaserve:requests_refused", "Calls refused because the queue was full.", registry=registry)
        for reason in (FinishReason.STOP, FinishReason.LENGTH):
            self.success.labels(model, reason.value)
        # Looking a label up costs more than counting, and this happens for every request in every step.
        self._meters = {name: self._meters_of(name) for name in (*classes, NO_CLASS)}

    def _meters_of(self, name: str) -> "ClassMeters":
        for outcome in ("attained", "missed", "cancelled", "no_target"):
            self.slo_requests.labels(name, outcome)
        selected = self.selected
        return ClassMeters(self.accepted_per_step.labels(name), selected.labels(name, "slo"), selected.labels(name, "throughput"))

    def step(self, stats: StatsNews) -> None:
        """Take in the engine's state after a step."""
        self.running.set(stats.running)
        self.waiting.set(stats.waiting)
        self.kv_usage.set(stats.kv_usage)
        self.budget.set(stats.budget_rows)
        self.budget_used.set(stats.used_rows)
        if stats.step_time_error is not None:
            self.step_time_error.set(stats.step_time_error)
        for phase, seconds in stats.seconds.items():
            self.step_seconds.labels(phase).observe(seconds)

    def news(self, request: Request, at: float, news: TokenNews) -> None:
        """Take in what a step brought a request at time `at`."""
        self.generation_tokens.inc(len(news.tokens))
        if news.tokens:
            before = self._delivered.get(request.id)
            if before is None:
                self.prompt_tokens.inc(len(request.prompt))
            else:
                self.inter_token.observe(at - before)
            self._delivered[request.id] = at
        if news.verified:
            meters = self._meters[request.slo_class or NO_CLASS]
            meters.accepted.observe(len(news.tokens))
            if news.drafted:
                self.drafts.inc()
                self.draft_tokens.inc(news.drafted)
                self.accepted_tokens.inc(max(0, len(news.tokens) - 1))
                meters.for_slo.inc(news.slo_drafted)
                meters.for_throughput.inc(max(0, news.drafted - news.slo_drafted))
        if news.finish is not None:
            self._delivered.pop(request.id, None)

    def ended(self, request: Request, result: RequestResult) -> None:
        """Take in a request's account, as its caller saw it."""
        name = request.slo_class or NO_CLASS
        if result.finish in (FinishReason.STOP, FinishReason.LENGTH):
            self.success.labels(self._model, result.finish.value).inc()
            self.latency.observe(result.latency)
            self._latency_sum += result.latency
            self._latency_count += 1
            if result.ttft is not None:
                self.ttft.observe(result.ttft)
            if result.tpot is not None and result.output_tokens > 1:
                self.tpot.observe(result.tpot)
        outcome = "cancelled" if result.finish is FinishReason.CANCELLED else OUTCOMES[result.attained]
        self.slo_requests.labels(name, outcome).inc()
        if outcome in ("attained", "missed"):
            met, of = self._attained.get(name, (0, 0))
            self._attained[name] = met, of = met + (outcome == "attained"), of + 1
            self.attainment.labels(name).set(met / of)

    def mean_latency(self) -> float:
        """Mean seconds from arrival to end over all requests so far; 1 before the first has ended."""
        return self._latency_sum / self._latency_count if self._latency_count else 1.0

    def engine_gone(self) -> None:
        """The engine died: nothing runs and nothing waits."""
        for gauge in (self.running, self.waiting, self.kv_usage):
            gauge.set(0)
        self._delivered.clear()

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)


OUTCOMES: Mapping[bool | None, str] = {True: "attained", False: "missed", None: "no_target"}
