"""Plays workloads on the built-in engine, in this process."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from adaserve.bench.recorded_run import RunRecorder, free_path
from adaserve.bench.replay import Progress, Replay, ReplayFailed, replay, to_requests
from adaserve.build import Parts
from adaserve.metrics import RequestResult
from adaserve.request import Request, SamplingParams
from adaserve.workload import Workload

WARM_UP = 4
"""Requests, and tokens of each, that run before the clock counts: first passes load kernels."""


class EngineRunner:
    """A Runner on the built-in engine: the same models, cache, slots and admission in order of arrival for every policy.

    Every run starts with an empty cache. A request that is longer than a sequence may be is refused, and so has missed its SLO.
    baseline: s/token, what relative targets refer to. stop, drain: as in `replay`.
    record: folder in which every finished run is written down, for calibrating the simulator.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        baseline: float,
        temperature: float,
        seed: int,
        stop: Callable[[], bool],
        drain: float,
        record: Path | None = None,
    ) -> None:
        self._parts = parts
        self._baseline = baseline
        self._temperature = temperature
        self._seed = seed
        self._stop = stop
        self._drain = drain
        self._record = record

    def __call__(self, policy: str, workload: Workload, on_progress: Callable[[Progress], None]) -> Replay:
        """Play a workload under the named policy."""
        parts = self._parts
        timed = to_requests(
            workload, parts.tokenizer, self._baseline, parts.eos_ids, temperature=self._temperature, seed=self._seed
        )
        fitting = [item for item in timed if self._fits(item[1])]
        replay(parts.engine(parts.policy(policy)), [(0.0, _short(request)) for _, request in fitting[:WARM_UP]])
        engine = parts.engine(parts.policy(policy))
        start = engine.clock.now()

        def turned_away(seconds: float) -> tuple[RequestResult, ...]:
            """Those that had arrived by then, and do not fit."""
            return tuple(
                RequestResult.refused(replace(request, arrived=start + at), start + at, self._baseline)
                for at, request in timed
                if at <= seconds and not self._fits(request)
            )

        recorder = RunRecorder(fitting)
        try:
            played = replay(engine, fitting, on_progress, self._stop, self._drain, recorder.on_step)
        except ReplayFailed as failed:
            raise ReplayFailed(replace(failed.played, refused=turned_away(failed.played.seconds))) from failed.__cause__
        if self._record is not None and not played.stopped:
            sizes = parts.sizes
            taken = recorder.finish(
                policy, played, slots=sizes.slots, kv_tokens=sizes.pages * sizes.page_size, page_size=sizes.page_size
            )
            taken.save(free_path(self._record, policy))
        return replace(played, refused=turned_away(played.seconds if played.stopped else float("inf")))

    def _fits(self, request: Request) -> bool:
        return len(request.prompt) + request.sampling.max_tokens <= self._parts.sizes.length


def _short(request: Request) -> Request:
    sampling = SamplingParams(max_tokens=WARM_UP, temperature=request.sampling.temperature, ignore_eos=True)
    return replace(request, sampling=sampling, stop_ids=())
