"""Plain steps run ahead of their plans: they change no token, whether the promise is kept or broken, and they do happen."""

import random
from collections.abc import Callable, Hashable
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from adaserve.assembly import Sizes, assemble_engine, make_executor
from adaserve.clock import WallClock
from adaserve.engine import Engine
from adaserve.executor.device import DeviceExecutor
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import Overrides, make_policy
from adaserve.purse import Choose, Selected
from adaserve.request import SamplingParams
from adaserve.step import StepOutcome, StepPlan, Verdict
from adaserve.tree import CandidateTree
from tests.captures import Replaying
from tests.engines import PROFILE, SMALL, engine_for, random_requests, run, tiny_models
from tests.test_law import PLAIN

T = TypeVar("T")


class Watched:
    """An executor that notes when verifications are computed, and hears a promise in every plan if it is told lies."""

    def __init__(self, slots: int, pages: int, *, lies: bool) -> None:
        self.plans: list[StepPlan] = []
        self.computed_for: list[int] = []  # how many plans had been heard of at each verification
        self._lies = lies
        self._inner = self._make(slots, pages)
        self.padding, self.runs_ahead = self._inner.padding, self._inner.runs_ahead

    def _make(self, slots: int, pages: int) -> DeviceExecutor:
        watched = self

        class Noting(Replaying):
            def __call__(self, key: Hashable, run: Callable[..., T], *inputs: Tensor) -> T:
                if isinstance(key, tuple) and key[0] in ("verify", "draw"):
                    watched.computed_for.append(len(watched.plans))
                return super().__call__(key, run, *inputs)

        self.models, self.sizes = tiny_models(), Sizes(slots, 200, pages, 4)
        return make_executor(self.models, self.sizes, WallClock(), padded=True, capture=Noting)

    def forget(self) -> None:
        self._inner.forget()

    def speculate(self, plan: StepPlan) -> CandidateTree:
        self.plans.append(plan)
        return self._inner.speculate(plan)

    def select(self, plan: StepPlan, candidates: CandidateTree, choose: Choose) -> Selected:
        return self._inner.select(plan, candidates, choose)

    def verify(self, plan: StepPlan, candidates: CandidateTree, chosen: Tensor) -> Verdict:
        return self._inner.verify(plan, candidates, chosen)

    def commit(self, plan: StepPlan, verdict: Verdict) -> StepOutcome:
        told = replace(plan, again=True) if self._lies and plan.decoding else plan
        return replace(self._inner.commit(told, verdict), plan=plan)


def test_nothing_captured_is_left_when_an_executor_closes() -> None:
    made: list[Replaying] = []

    class Kept(Replaying):
        def __init__(self, device: torch.device) -> None:
            super().__init__(device)
            made.append(self)

    models, sizes = tiny_models(), Sizes(4, 200, 40, 4)
    executor = make_executor(models, sizes, WallClock(), padded=True, capture=Kept)
    policy = make_policy("adaserve", SMALL)
    engine = assemble_engine(models, sizes, policy, PROFILE, clock=WallClock(), executor=executor)
    run(engine, random_requests(random.Random(0), 6, sampling(0.0)), burst=2)
    held = [capture.held for capture in made]
    engine.close()
    assert sum(held) > sum(capture.held for capture in made)
    assert {id(c) for c in made if not c.held} >= {id(c) for c in (executor._check.capture, executor._choosing)}


def engine_with(executor: Watched, policy: str, constants: Constants = SMALL, overrides: Overrides | None = None) -> Engine:
    made: Any = executor
    used = make_policy(policy, constants, overrides)
    return assemble_engine(executor.models, executor.sizes, used, PROFILE, clock=WallClock(), executor=made)


def sampling(temperature: float) -> list[SamplingParams]:
    """Nothing that edits logits: such steps are never run ahead. Some texts end early, by stop ids."""
    return [SamplingParams(max_tokens=m, temperature=temperature, ignore_eos=m == 24) for m in (3, 12, 24)]


def follows(before: StepPlan, after: StepPlan) -> bool:
    """Whether a plan is what the one before it may promise: whoever is missing has left its slot."""
    asked, promised = set(after.decoding), set(before.decoding)
    plain = not (after.chunks or after.placed or after.depth)
    return plain and asked <= promised and promised - asked <= set(after.released)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_promised_steps_are_computed_before_they_are_planned(temperature: float) -> None:
    """All of them, and no step is computed twice unless the promised one does not come, for all its requests have ended."""
    requests = random_requests(random.Random(temperature), 24, sampling(temperature))
    plain = run(engine_for(tiny_models(), PLAIN), requests, check=False)
    executor = Watched(8, 400, lies=False)
    assert run(engine_with(executor, "continuous"), requests, burst=3).tokens == plain.tokens
    plans = executor.plans
    early = [number for number, plan in enumerate(plans, 1) if plan.again]
    assert len(early) > 5, "nobody comes in the end, so there are steps to promise"
    came = {number + 1 for number in early if number < len(plans) and follows(plans[number - 1], plans[number])}
    planned = [number for number, plan in enumerate(plans, 1) if plan.decoding and number not in came]
    chunked = [number for number, plan in enumerate(plans, 1) if plan.chunks and not plan.decoding]
    assert sorted(executor.computed_for) == sorted(early + planned + chunked)


@pytest.mark.parametrize("policy", ["continuous", "adaserve", "adaserve+", "fastserve", "vtc", "priority"])
def test_promises_are_kept(policy: str) -> None:
    """After a promise come the same requests or some of them, plainly, and nothing else, however many others have come."""
    executor = Watched(6, 90, lies=False)
    few = replace(SMALL, verify_rows=6)  # so that adaptive policies draft for some numbers of requests and not for others
    plainly = Overrides(depth=0) if policy == "adaserve+" else None  # whether drafts pay here is a matter of measured times
    run(engine_with(executor, policy, few, plainly), random_requests(random.Random(3), 20, sampling(0.0)), burst=1)
    promised = [pair for pair in pairwise(executor.plans) if pair[0].again]
    assert promised
    for before, after in promised:
        ended = set(before.decoding) <= set(after.released)  # all of them: then the promise is void
        assert ended or follows(before, after)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("policy", ["continuous", "adaserve", "spec:4", "sarathi"])
@pytest.mark.parametrize("pages", [400, 40])
def test_a_broken_promise_costs_no_token(policy: str, temperature: float, pages: int) -> None:
    """What was run ahead for nothing is taken back."""
    requests = random_requests(random.Random(temperature + 1), 24, sampling(temperature))
    plain = run(engine_for(tiny_models(), PLAIN), requests, check=False)
    executor = Watched(8, pages, lies=True)
    found = run(engine_with(executor, policy), requests, burst=2)
    assert found.tokens == plain.tokens
    broken = [pair for pair in pairwise(executor.plans) if pair[0].decoding and not follows(*pair)]
    assert broken, "there was nothing to take back"


@pytest.mark.parametrize("policy", ["fastserve", "priority"])
def test_who_sits_out_a_promised_step_loses_no_token(policy: str) -> None:
    """A step is run ahead for all, and its plan leaves out some who are still there: theirs is taken back, or a token is lost."""
    requests = random_requests(random.Random(5), 24, sampling(0.0))
    plain = run(engine_for(tiny_models(), PLAIN), requests, check=False)
    executor = Watched(8, 400, lies=True)
    few = replace(SMALL, token_budget=3)
    assert run(engine_with(executor, policy, few), requests, burst=2).tokens == plain.tokens
    sat_out = [set(a.decoding) - set(b.decoding) - set(b.released) for a, b in pairwise(executor.plans) if a.decoding]
    assert any(sat_out), "nobody ever sat out"


def test_what_a_request_asks_for_by_name_is_not_run_ahead() -> None:
    """Log-probabilities need the logits, which captured calls do not keep: such steps come when they are planned."""
    described = [SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=2)]
    executor = Watched(4, 100, lies=False)
    run(engine_with(executor, "continuous"), random_requests(random.Random(0), 4, described))
    assert any(plan.again for plan in executor.plans)
    assert not executor.computed_for, "nothing of it is captured"
