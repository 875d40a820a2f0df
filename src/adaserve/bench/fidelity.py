"""How far the simulator is from recorded real runs: the same requests, a measured profile, recorded residuals and acceptance."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from adaserve.bench.recorded_run import Figures, RecordedRun
from adaserve.executor.acceptance import RecordedOutput, Recording, join
from adaserve.executor.recorder import recorded_output
from adaserve.latency import LatencyModel
from adaserve.models.decoder import Decoder
from adaserve.policy.policy import Policy
from adaserve.profile import Profile
from adaserve.request import Request
from adaserve.simulate import Machine, simulate

ATTAINMENT_TOLERANCE = 0.03
TPOT_TOLERANCE = 0.05
WIDTH = 8
LEAST_STEPS = 5


@dataclass(frozen=True)
class Fidelity:
    """One policy: the figures of its real runs, and beside each what the simulator says, averaged over its seeds.

    A run is simulated with what was learnt from the run before it (the first from the last), so none is judged by itself.
    """

    policy: str
    real: tuple[Figures, ...]
    simulated: tuple[Figures, ...]

    @property
    def attainment_errors(self) -> tuple[float, ...]:
        """Simulated less real attainment, by run."""
        return tuple((s.attainment or 0.0) - (r.attainment or 0.0) for r, s in zip(self.real, self.simulated, strict=True))

    @property
    def attainment_gap(self) -> float:
        """How far apart the real runs are."""
        found = [f.attainment or 0.0 for f in self.real]
        return max(found) - min(found)

    @property
    def tpot_errors(self) -> tuple[float, ...]:
        """Simulated / real median TPOT - 1, by run."""
        return tuple((s.tpot_p50_ms or 0.0) / (r.tpot_p50_ms or 1.0) - 1 for r, s in zip(self.real, self.simulated, strict=True))

    @property
    def tpot_error(self) -> float:
        """The mean of the errors."""
        return fmean(self.tpot_errors)

    @property
    def within(self) -> bool:
        """Each run's attainment within 3 points or twice the gap between the real runs, and the mean TPOT p50 within 5%."""
        allowed = max(ATTAINMENT_TOLERANCE, 2 * self.attainment_gap)
        return max(map(abs, self.attainment_errors)) <= allowed and abs(self.tpot_error) <= TPOT_TOLERANCE


def fidelity(
    runs: Sequence[RecordedRun],
    policy: Callable[[], Policy],
    profile: Profile,
    recording: Recording,
    seeds: Sequence[int],
) -> Fidelity:
    """Simulate what a policy's real runs did, each with curve and residuals of another one, and from each seed on.

    The scheduler starts from `profile`; the truth is `profile` bent to the other run. A single run is its own other.
    """
    found = []
    for index, run in enumerate(runs):
        other = runs[index - 1]
        truth = bent(profile, other)
        machine = Machine(truth, profile, other.residuals(truth), run.slots, run.kv_tokens, run.page_size)
        played = [simulate(run.timed, policy(), machine, recording, seed=seed) for seed in seeds]
        figures = [Figures.of((*p.results, *p.refused)) for p in played]
        found.append(Figures(fmean(f.attainment or 0.0 for f in figures), fmean(f.tpot_p50_ms or 0.0 for f in figures)))
    return Fidelity(runs[0].policy, tuple(run.figures for run in runs), tuple(found))


def bent(profile: Profile, run: RecordedRun) -> Profile:
    """The profile whose target curve also holds what a run's steps took beyond their prediction, by rows.

    Residuals are replayed one after another whatever the step. Unless their mean is alike for all kinds of steps, that lets
    decoding pay for prompts or the other way round. At every measured point the median surprise of the steps nearest to it is
    added, where there are enough of them.
    """
    model = LatencyModel(profile)
    surprise: dict[int, list[float]] = {rows: [] for rows in profile.verify_ms_by_rows}
    for shape, seconds in run.steps:
        nearest = min(surprise, key=lambda rows: abs(math.log(rows / shape.rows)))
        surprise[nearest].append((seconds - model.predict(shape)) * 1e3)
    curve = {
        rows: max(cost / 2, cost + median(surprise[rows])) if len(surprise[rows]) >= LEAST_STEPS else cost
        for rows, cost in profile.verify_ms_by_rows.items()
    }
    return replace(profile, verify_ms_by_rows=curve)


def acceptance(run: RecordedRun, draft: Decoder, *, pair: str, temperature: float, vocabulary: int | None) -> Recording:
    """What the draft would have proposed at every position of a run's outputs; by the law all policies' outputs are the same."""
    outputs: dict[str, list[RecordedOutput]] = {}
    for prompt, tokens, name in _distinct([request for _, request in run.timed], run.outputs):
        output = recorded_output(draft, prompt, tokens, temperature=temperature, width=WIDTH, vocabulary=vocabulary)
        outputs.setdefault(name, []).append(output)
    return join(outputs, pair=pair, temperature=temperature, source=f"a real run of {run.policy}")


def _distinct(
    requests: Sequence[Request], outputs: dict[str, tuple[int, ...]]
) -> list[tuple[tuple[int, ...], tuple[int, ...], str]]:
    """Prompt, output and class of every different prompt of a class; the longest output of each."""
    longest: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {}
    for request in requests:
        key = (str(request.slo_class), request.prompt)
        longest[key] = max(longest.get(key, ()), outputs[request.id], key=len)
    return [(prompt, tokens, name) for (name, prompt), tokens in longest.items() if tokens]
