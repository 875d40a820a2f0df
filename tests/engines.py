"""Tiny engines for tests: a random target, a draft made from it plus noise, and requests drawn at random."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from adaserve.assembly import Models, Sizes, assemble_engine, make_executor
from adaserve.clock import WallClock
from adaserve.engine import Engine
from adaserve.metrics import RequestResult
from adaserve.models.random import noisy_copy, random_weights, tiny_config
from adaserve.models.weights import assemble
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import Overrides, make_policy
from adaserve.policy.policy import Policy
from adaserve.profile import Profile
from adaserve.request import Request, SamplingParams, Targets
from tests.captures import Replaying

PROFILE = Profile("test", {1: 1.0, 64: 2.0}, 0.001, {1: 0.2, 64: 0.3}, 0.0, 0.1, 0.0, 1.0)
VOCABULARY = 100
SMALL = Constants(verify_rows=24, draft_rows=12, prompt_rows=8, idle_prompt_rows=16)
NOTHING_FIXED = Overrides()


def tiny_models(seed: int = 0, noise: float = 0.05, scale: float = 4.0, dtype: torch.dtype = torch.float64) -> Models:
    """A random target and a draft that mostly agrees with it. `scale` sharpens the target's distributions, as training would."""
    config = tiny_config(vocab_size=VOCABULARY)
    weights = random_weights(config, seed)
    for name in ("lm_head.weight",):
        weights[name] = weights[name] * scale
    target = assemble(config, weights, "target", dtype=dtype)
    draft = assemble(config, noisy_copy(weights, noise, seed + 1), "draft", dtype=dtype)
    return Models(target, draft)


@dataclass(frozen=True)
class Setting:
    """One way to run the same requests: everything here must not change a token. captured: as by CUDA graphs, so padded too."""

    policy: str
    draft: str = "model"
    constants: Constants = SMALL
    overrides: Overrides = NOTHING_FIXED
    slots: int = 8
    pages: int = 400
    page_size: int = 4
    prefix_caching: bool = True
    padded: bool = False
    captured: bool = False


@dataclass(frozen=True)
class Run:
    """What came out: tokens and result per request id."""

    tokens: dict[str, list[int]]
    results: dict[str, RequestResult]

    @property
    def accepted_per_step(self) -> float:
        """Draft tokens accepted per verification and request."""
        steps = sum(r.steps for r in self.results.values())
        return sum(r.accepted for r in self.results.values()) / steps if steps else 0.0


def engine_for(models: Models, setting: Setting, policy: Policy | None = None) -> Engine:
    """Assemble an engine."""
    used = {
        "model": models,
        "ngram": Models(models.target, None, lookup=True),
        "model+ngram": replace(models, lookup=True),
        "ngram by tenant": Models(models.target, None, lookup=True, recalls=True),
        "model+ngram by tenant": replace(models, lookup=True, recalls=True),
        "none": Models(models.target),
    }[setting.draft]
    sizes = Sizes(setting.slots, 200, setting.pages, setting.page_size)
    made = policy or make_policy(setting.policy, setting.constants, setting.overrides)
    clock = WallClock()
    capture = Replaying if setting.captured else None
    executor = make_executor(used, sizes, clock, padded=setting.padded or setting.captured or None, capture=capture)
    return assemble_engine(used, sizes, made, PROFILE, clock=clock, executor=executor, prefix_caching=setting.prefix_caching)


def random_requests(rng: random.Random, count: int, sampling: Sequence[SamplingParams]) -> list[Request]:
    """Requests with random prompts, some of which share prefixes, lengths and targets."""
    stems = [tuple(rng.choices(range(VOCABULARY), k=rng.randint(1, 30))) for _ in range(4)]
    requests = []
    for index in range(count):
        params = rng.choice(sampling)
        prompt = rng.choice(stems) + tuple(rng.choices(range(VOCABULARY), k=rng.randint(1, 12)))
        requests.append(
            Request(
                id=f"r{index}",
                prompt=prompt,
                sampling=params,
                targets=Targets(tpot=rng.choice([None, 0.0005, 0.002, 0.02])),
                seed=rng.getrandbits(63),
                arrived=0.0,
                choice=rng.randint(0, 2),
                slo_class=f"class {index % 3}",
                stop_ids=() if params.ignore_eos else (rng.randrange(VOCABULARY),),
            )
        )
    return requests


def run(engine: Engine, requests: Sequence[Request], burst: int = 10**9, check: bool = True) -> Run:
    """Run requests to their end, handing in `burst` of them before each step; checks the page accounting after every step."""
    waiting = list(requests)
    tokens: dict[str, list[int]] = {r.id: [] for r in requests}
    results: dict[str, RequestResult] = {}
    while len(results) < len(requests):
        for request in waiting[:burst]:
            engine.add(request)
        del waiting[:burst]
        report = engine.step()
        assert report is not None or waiting, "the engine is idle although requests have not ended"
        for update in report.updates if report else ():
            assert update.id not in results, "news of a request that had ended"
            tokens[update.id] += update.tokens
            if update.result is not None:
                results[update.id] = update.result
        if report is not None and report.outcome is not None:
            outcome = report.outcome
            trees = len(outcome.plan.decoding) + sum(c.length for c in outcome.plan.chunks)
            assert outcome.used_rows <= trees + outcome.plan.limits.nodes, "more rows than the budget"
            assert all(len(t) >= 1 for t in outcome.tokens), "a decoding request gained nothing"
        if check:
            engine.check()
    assert engine.step() is None
    engine.check()
    return Run(tokens, results)
