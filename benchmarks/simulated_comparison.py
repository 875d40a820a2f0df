"""What simulated_results.py compares, under which changes: policies on one profile and one trace, every run kept in a folder."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from adaserve.bench.about import commit
from adaserve.bench.demo_terminal import Terminal
from adaserve.bench.experiment import Experiment
from adaserve.bench.report import write_report
from adaserve.bench.runs import Point, Run, RunStore
from adaserve.bench.source import WorkloadSource
from adaserve.clock import WallClock
from adaserve.executor.shipped import recording_named
from adaserve.policy.library import WITHOUT, Overrides, make_policy
from adaserve.policy.plus.parts import PlusConstants, PlusParts
from adaserve.policy.policy import Policy
from adaserve.profile import Profile
from adaserve.simulate import Machine, SimulatedRunner, constants_for, described
from adaserve.step import Order
from adaserve.workload import DEMO_MIX, Trace

PAPERS = ("continuous", "sarathi", "spec:4", "spec:6", "spec:8", "specinfer", "priority", "fastserve", "vtc")
POLICIES = ("adaserve+", "adaserve", "throughput", *PAPERS)
ABLATIONS = ("adaserve+", *(WITHOUT + part.name for part in fields(PlusParts) if part.name != "coupled"))
"""Coupled drafting is of the real drafter: the recordings here were made without."""

SWAP = {"coding": "chat", "chat": "coding"}


@dataclass(frozen=True)
class Change:
    """What a table's row changes: the machine, the draft, or the constants of the policies that draft trees.

    acceptance: None for the comparison's own.
    """

    name: str
    acceptance: str | None = None
    swap: bool = False
    draft_cost: float = 1.0
    constants: tuple[tuple[str, Any], ...] = ()
    order: Order = Order.NEEDIEST
    urgent: float | None = None


class Comparison:
    """Runs settings on one profile and one trace, keeping every run in a folder."""

    def __init__(
        self,
        trace: Trace,
        profile: Profile,
        out: Path,
        duration: float,
        ms_scale: float | None,
        start: float,
        jobs: int,
        seed: int,
        acceptance: str,
        slots: int,
    ) -> None:
        self._trace = trace
        self.profile = profile
        self._out = out
        self._ms_scale = ms_scale
        self.duration = duration
        self.commit = commit()
        self._start = start
        self._jobs = jobs
        self._seed = seed
        self._acceptance = acceptance
        self._slots = slots
        self._starts: dict[str, float] = {}
        out.mkdir(parents=True, exist_ok=True)

    def experiment(self, setting: Change) -> Experiment:
        """The experiment of a setting; its runs are found again in the folder."""
        profile = replace(
            self.profile,
            draft_step_ms_by_rows={r: ms * setting.draft_cost for r, ms in self.profile.draft_step_ms_by_rows.items()},
            draft_next_ms_by_rows={r: ms * setting.draft_cost for r, ms in self.profile.draft_next_ms_by_rows.items()},
        )
        machine = Machine(profile, slots=self._slots)
        acceptance = setting.acceptance or self._acceptance
        swap = SWAP if setting.swap else {}
        conditions = {
            "profile": profile.to_json(),
            "trace": self._trace.digest,
            "duration": None if math.isinf(self.duration) else self.duration,
            "ms_scale": self._ms_scale,
            "acceptance": acceptance,
            "swap": swap,
            "policies": [described(self._policy(name, setting)) for name in (*POLICIES, *ABLATIONS)],
            "constants": [repr(constants_for(profile, name)) for name in POLICIES] + [repr(PlusConstants())],
            "seed": self._seed,
            "slots": self._slots,
        }
        return Experiment(
            source=self._source,
            runner=SimulatedRunner(
                lambda name: self._policy(name, setting),
                machine,
                recording_named(acceptance, 0),
                seed=self._seed,
                swap=swap,
                stop=lambda: False,
            ),
            store=RunStore(self._out, conditions, machine.baseline),
            terminal=Terminal(sys.stderr),
            clock=WallClock(),
            stop=lambda: False,
            commit=self.commit,
            jobs=self._jobs,
        )

    @property
    def _source(self) -> WorkloadSource:
        return WorkloadSource(
            lambda seed, s: self._trace.requests(DEMO_MIX, seed, s), self.duration, urgent="coding", ms_scale=self._ms_scale
        )

    def demand(self, speed: float, urgent: float | None) -> float:
        """Rows a second that the requests need at least: one for every token of a prompt or an output."""
        point = Point(speed=speed, urgent=urgent, seed=self._seed)
        arrivals = self._source.at(point, self.profile.baseline_ms_per_token / 1e3).arrivals
        rows = sum(a.max_tokens + (a.input_length or sum(part.tokens for part in a.parts)) for a in arrivals)
        return rows / min(self.duration, arrivals[-1].at)

    def capacities(
        self, setting: Change, policies: Sequence[str], goals: Sequence[float]
    ) -> dict[float, dict[str, float | None]]:
        """Capacity by goal and policy, as a multiple of the trace's rate; None where not even the lowest load will do."""
        found: dict[float, dict[str, float | None]] = {goal: {} for goal in goals}
        experiment = self.experiment(setting)
        for policy in policies:
            begin = Point(speed=self._starts.get(policy, self._start), urgent=setting.urgent, seed=self._seed)
            capacity = experiment.capacities([policy], begin, goals)
            for goal in goals:
                found[goal][policy] = capacity.speeds[goal].get(policy)
            self._starts[policy] = capacity.speeds[max(goals)].get(policy) or self._starts.get(policy, self._start)
        return found

    @property
    def rate(self) -> float:
        """The trace's requests per second at speed 1."""
        return len(self._trace.times) / self._trace.times[-1]

    def _policy(self, name: str, setting: Change) -> Policy:
        constants = constants_for(self.profile, name)
        if name in ("adaserve", "throughput"):
            constants = replace(constants, **dict(setting.constants))
        return make_policy(name, constants, Overrides(order=setting.order))

    def report(self, runs: Sequence[Run]) -> None:
        """Write report.json, report.md and the plots."""
        write_report(self._out, {"profile": self.profile.name, "commit": self.commit}, f"simulated: {self.profile.name}", runs)
