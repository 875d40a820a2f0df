"""Small schedulers and made-up outcomes, for tests that look at decisions alone."""

import random
from typing import Any

from adaserve.latency import LatencyModel
from adaserve.padding import Padding, Unpadded
from adaserve.pages import PagePool
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import Overrides, make_policy
from adaserve.policy.policy import Policy
from adaserve.profile import Profile
from adaserve.request import Request, RequestState, SamplingParams, Targets
from adaserve.scheduling.scheduler import Drafting, Progress, Scheduler
from adaserve.step import Drafted, PhaseTimes, StepOutcome, StepPlan, StepShape
from tests.engines import PROFILE

POLICIES = ("adaserve", "adaserve+", "throughput", "continuous", "sarathi", "spec:3", "specinfer", "priority", "fastserve", "vtc")
CONSTANTS = Constants(verify_rows=24, draft_rows=8, prompt_rows=6, idle_prompt_rows=12)
PAPER = Constants(verify_rows=64, draft_rows=64, prompt_rows=32)


def request(
    name: str,
    prompt: int,
    output: int = 8,
    tpot: float | None = None,
    ttft: float | None = None,
    stem: int = 0,
    slo_class: str | None = None,
    arrived: float = 0.0,
) -> Request:
    """A request for `output` tokens; of two with the same stem one prompt begins with the other."""
    tokens = tuple(random.Random(stem).choices(range(50), k=prompt))
    sampling = SamplingParams(max_tokens=output)
    return Request(name, tokens, sampling, Targets(tpot=tpot, ttft=ttft), seed=0, arrived=arrived, slo_class=slo_class)


def waiting(name: str, prompt: int = 3, produced: int = 0, **facts: Any) -> RequestState:
    """The state of a request that produced so many tokens before it lost its slot."""
    made = request(name, prompt, **facts)
    return RequestState(made, [*made.prompt, *[7] * produced])


def decoding(name: str, produced: int = 1, tpot: float | None = None, prompt: int = 3, slot: int = 0) -> RequestState:
    """The state of a running request that decodes."""
    state = waiting(name, prompt, produced, tpot=tpot)
    state.slot, state.computed, state.decoding_since = slot, len(state.tokens) - 1, 0.0
    return state


def scheduler(
    policy: str | Policy = "adaserve",
    pages: int = 100,
    slots: int = 4,
    reuse: bool = True,
    constants: Constants = CONSTANTS,
    overrides: Overrides | None = None,
    profile: Profile = PROFILE,
    drafting: Drafting = Drafting.MODEL,
    padding: Padding | None = None,
) -> Scheduler:
    """A scheduler with pages of four tokens."""
    return Scheduler(
        policy=make_policy(policy, constants, overrides) if isinstance(policy, str) else policy,
        latency=LatencyModel(profile),
        pages=PagePool(pages, 4),
        slots=slots,
        drafting=drafting,
        reuse_prefixes=reuse,
        padding=padding or Unpadded(),
    )


def outcome(plan: StepPlan, gained: int = 1) -> StepOutcome:
    """An outcome in which every tree gains `gained` tokens, as far as the plan allows."""
    nothing = Drafted((), (), (), (), (), (), ())
    tokens = tuple((7,) * min(gained, room + 1, plan.depth + 1) for room in plan.room)
    draws = sum(c.draws for c in plan.chunks)
    return StepOutcome(
        plan, tokens, (7,) * draws, ((),) * len(tokens), ((),) * draws, nothing, (), StepShape(1, 1), PhaseTimes(verify=0.001)
    )


def step(made: Scheduler, now: float, gained: int = 1) -> tuple[StepPlan, list[Progress]]:
    """Plan a step and record an outcome a hundredth of a second later."""
    plan = made.plan(now)
    assert plan is not None
    return plan, made.record(outcome(plan, gained), now + 0.01)


def names(made: Scheduler, slots: tuple[int, ...]) -> list[str]:
    """Whose slots these are."""
    return [made.state(slot).request.id for slot in slots]
