"""Simulation: the real engine, scheduler and policies on a simulated executor, under a virtual clock.

    timed = to_requests(workload, machine.baseline, seed=0)
    replay = simulate(timed, policy, machine, recording, seed=0)  # the Replay of an engine as any other

What is not real stands in three places: how long steps take (executor/truth.py), which drafts are accepted
(executor/acceptance.py), and the prompts' token ids, which are hashes of their words.
"""

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adaserve.bench.replay import Progress, Replay, replay
from adaserve.clock import VirtualClock
from adaserve.engine import Engine
from adaserve.errors import InvalidConfig
from adaserve.executor.acceptance import Recording, digest
from adaserve.executor.simulated import SimulatedExecutor
from adaserve.executor.truth import Truth, drawn_residuals, recorded_residuals
from adaserve.latency import LatencyModel
from adaserve.metrics import RequestResult
from adaserve.padding import GraphPadding, Unpadded
from adaserve.pages import PagePool
from adaserve.policy.adaptive import Constants
from adaserve.policy.policy import Policy
from adaserve.profile import Profile, budget_from
from adaserve.request import SLO, Request, SamplingParams
from adaserve.scheduling.scheduler import Drafting, Scheduler
from adaserve.tuning import TUNINGS, load_constants
from adaserve.workload import Arrival, Workload

PIECE = re.compile(r"\w{1,9}|[^\w\s]|\n\s*")
"""Roughly a token. On the paper's prompts: 3% more than the tokens stated for code, 2 to 3% fewer for chat and articles."""


@dataclass(frozen=True)
class Machine:
    """What is simulated.

    profile: how long steps really take. believed: what the scheduler starts from; None for the same curves.
    residuals: measured / predicted of a recorded run's steps; None draws them with the profile's spread.
    slots: most requests at once. kv_tokens: what the KV cache holds. page_size: tokens a page.
    """

    profile: Profile
    believed: Profile | None = None
    residuals: tuple[float, ...] | None = None
    slots: int = 64
    kv_tokens: int = 262_144
    page_size: int = 16

    def __post_init__(self) -> None:
        for name in ("slots", "kv_tokens", "page_size"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def baseline(self) -> float:
        """Seconds per token of one request alone, without speculation."""
        return self.profile.baseline_ms_per_token / 1e3


def to_requests(workload: Workload, baseline: float, *, seed: int, temperature: float = 0.0) -> list[tuple[float, Request]]:
    """Pairs of arrival time and request, as bench.replay.to_requests makes them, without a tokenizer.

    temperature: changes nothing but what requests say of themselves; acceptance is the recording's.
    """
    timed = []
    for number, arrival in enumerate(workload.arrivals):
        request = Request(
            id=f"{number}",
            prompt=prompt_ids(arrival),
            sampling=SamplingParams(max_tokens=arrival.max_tokens, temperature=temperature, ignore_eos=arrival.ignore_eos),
            targets=(arrival.slo or SLO()).resolve(baseline),
            seed=seed + number,
            arrived=0.0,
            slo_class=arrival.class_name,
        )
        timed.append((arrival.at, request))
    return timed


def prompt_ids(arrival: Arrival) -> tuple[int, ...]:
    """Token ids for a prompt, of the stated length if one is stated; prompts that begin alike have ids that begin alike."""
    if arrival.parts:
        return tuple(i for part in arrival.parts for i in _numbered(f"{part.class_name} {part.key}", part.tokens))
    pieces = PIECE.findall(arrival.prompt)[: arrival.input_length] or [arrival.prompt]
    ids = [zlib.crc32(piece.encode("utf-8", "surrogatepass")) for piece in pieces]
    missing = (arrival.input_length or 0) - len(ids)
    return (*ids, *_numbered(arrival.prompt, missing))


def _numbered(text: str, count: int) -> range:
    """`count` ids that only this text has."""
    first = zlib.crc32(text.encode("utf-8", "surrogatepass")) << 32
    return range(first, first + count)


def simulate(
    timed: Sequence[tuple[float, Request]],
    policy: Policy,
    machine: Machine,
    recording: Recording,
    *,
    seed: int = 0,
    swap: Mapping[str, str] | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Replay:
    """Run the requests to their end on the simulated machine; the same arguments always bring the same result.

    timed: pairs of arrival time and request; seeds must differ. recording: what drafts are accepted; classes that it lacks draw
    from all of it. swap: for a class of requests, the recorded class whose acceptance it gets instead of its own.
    Requests that do not ignore the end of a text end where their recorded output did. One that the cache cannot hold is refused.
    on_progress, stop: as in bench.replay.
    """
    scripts = scripts_for([request for _, request in timed], recording, seed, swap or {})
    ending = [(at, _ending(request, recording.length(scripts[request.seed]))) for at, request in timed]
    fitting = [(at, r) for at, r in ending if len(r.prompt) + r.sampling.max_tokens <= machine.kv_tokens]
    played = replay(simulated_engine(policy, machine, recording, scripts, seed), fitting, on_progress, stop)
    ids, last = {request.id for _, request in fitting}, played.seconds if played.stopped else math.inf
    turned_away = [(at, request) for at, request in ending if request.id not in ids and at <= last]
    refused = (RequestResult.refused(replace(r, arrived=at), at, machine.baseline) for at, r in turned_away)
    return replace(played, refused=tuple(refused))


def simulated_engine(policy: Policy, machine: Machine, recording: Recording, scripts: Mapping[int, int], seed: int) -> Engine:
    """An engine as any other, but for its executor and its clock. scripts: see SimulatedExecutor."""
    clock = VirtualClock()
    latency = LatencyModel(machine.believed or machine.profile)
    padding = GraphPadding() if machine.profile.padded else Unpadded()
    draw_times, draw_candidates = np.random.default_rng(seed).spawn(2)
    residuals = (
        drawn_residuals(machine.profile.residual_cv, draw_times)
        if machine.residuals is None
        else recorded_residuals(machine.residuals, draw_times)
    )
    scheduler = Scheduler(
        policy=policy,
        latency=latency,
        pages=PagePool(-(-machine.kv_tokens // machine.page_size), machine.page_size),
        slots=machine.slots,
        drafting=Drafting.MODEL if machine.profile.draft_step_ms_by_rows else Drafting.NONE,
        reuse_prefixes=True,
        padding=padding,
    )
    executor = SimulatedExecutor(
        recording=recording,
        scripts=scripts,
        truth=Truth(machine.profile, residuals),
        clock=clock,
        rng=draw_candidates,
        slots=machine.slots,
        padding=padding,
    )
    return Engine(scheduler=scheduler, policy=policy, executor=executor, latency=latency, clock=clock, baseline=machine.baseline)


def scripts_for(requests: Sequence[Request], recording: Recording, seed: int, swap: Mapping[str, str]) -> dict[int, int]:
    """Which recorded sequence each request follows, by the request's seed.

    A request whose very prompt was recorded for its class follows that output, any other one that its id and `seed` decide.
    Raises InvalidConfig for a swap with a class that was not recorded, ValueError when two requests have the same seed.
    """
    for name in swap.values():
        if name not in recording.classes:
            raise InvalidConfig(f"there is no class {name!r} in {recording.pair}, only {', '.join(recording.classes)}")
    recorded: dict[int, list[int]] = {}  # sequences by the digest of their prompt
    for sequence, name in enumerate(recording.prompt.tolist()):
        recorded.setdefault(name, []).append(sequence)
    scripts: dict[int, int] = {}
    for request in requests:
        sequences = recording.sequences(swap.get(request.slo_class or "", request.slo_class))
        same_prompt = [s for s in recorded.get(digest(request.prompt), ()) if s in sequences]
        choices = same_prompt or sequences
        scripts[request.seed] = choices[zlib.crc32(f"{seed} {request.id}".encode()) % len(choices)]
    if len(scripts) < len(requests):
        raise ValueError("requests must have different seeds")
    return scripts


def _ending(request: Request, length: int) -> Request:
    """The request with its output's end, unless it ignores that."""
    sampling = request.sampling
    if sampling.ignore_eos or sampling.max_tokens <= length:
        return request
    return replace(request, sampling=replace(sampling, max_tokens=length, min_tokens=min(sampling.min_tokens, length)))


class SimulatedRunner:
    """A bench.runs.Runner on a simulated machine. policy_named: makes a policy of a fresh state; stop: as in bench.replay."""

    def __init__(
        self,
        policy_named: Callable[[str], Policy],
        machine: Machine,
        recording: Recording,
        *,
        seed: int,
        swap: Mapping[str, str],
        stop: Callable[[], bool],
    ) -> None:
        self._policy_named = policy_named
        self._machine = machine
        self._recording = recording
        self._seed = seed
        self._swap = swap
        self._stop = stop

    def __call__(self, policy: str, workload: Workload, on_progress: Callable[[Progress], None]) -> Replay:
        """Play a workload under the named policy."""
        timed = to_requests(workload, self._machine.baseline, seed=self._seed)
        made = self._policy_named(policy)
        return simulate(
            timed,
            made,
            self._machine,
            self._recording,
            seed=self._seed,
            swap=self._swap,
            on_progress=on_progress,
            stop=self._stop,
        )


def described(policy: Policy) -> str:
    """A policy in words that are the same in every process, for a RunStore. Not all of its constants are among them."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(policy))


def constants_for(profile: Profile, policy: str) -> Constants:
    """A policy's constants on a simulated machine: those shipped for a profile of this name, else what its curves suggest.

    A machine as measured has those of the machine that was planned, which it served with.
    """
    shipped = TUNINGS / f"{profile.name.removesuffix('-measured')}.json"
    if shipped.is_file():
        return load_constants(shipped, policy)
    budgets = budget_from(profile, requests=1)
    # Half a pass for prompts: on both built-in profiles a search ended there, and the 32 rows of a CPU starve a GPU's prompts.
    prompt_rows = max(Constants.prompt_rows, budgets.verify // 2)
    return Constants(verify_rows=budgets.verify, draft_rows=budgets.draft, prompt_rows=prompt_rows)
