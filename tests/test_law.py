"""The first law: speculation, batching, chunking and pre-emption never change a token.

Every case runs the same requests plainly, as a reference, and in another way; float64 makes equality exact. A law test over
models that never agree would prove nothing, so one counts accepted draft tokens.
"""

import random

import pytest

from adaserve.policy.adaptive import Constants
from adaserve.policy.library import Overrides
from adaserve.request import SamplingParams
from adaserve.step import Order
from tests.engines import Run, Setting, engine_for, random_requests, run, tiny_models

PLAIN = Setting("continuous", draft="none", slots=1, pages=120, prefix_caching=False)
REQUESTS = 64


def small(**changes: int) -> Constants:
    return Constants(**{"verify_rows": 24, "draft_rows": 12, "prompt_rows": 8, "idle_prompt_rows": 16, **changes})


SETTINGS = {
    "continuous": Setting("continuous"),
    "spec4": Setting("spec:4"),
    "spec8 one slot": Setting("spec:8", slots=1),
    "adaserve": Setting("adaserve"),
    "plus": Setting("adaserve+"),
    "plus, pre-empted": Setting("adaserve+", pages=22),
    "narrow": Setting("adaserve", overrides=Overrides(depth=6, width=1)),
    "wide": Setting("adaserve", overrides=Overrides(depth=2, width=8), constants=small(verify_rows=200)),
    "deep and wide": Setting("adaserve", overrides=Overrides(depth=7, width=9), constants=small(verify_rows=400, per_request=63)),
    "depth 0": Setting("adaserve", overrides=Overrides(depth=0)),
    "tiny budget": Setting("adaserve", constants=small(verify_rows=9)),
    "single-row chunks": Setting("adaserve", constants=small(prompt_rows=1, idle_prompt_rows=1)),
    "attainable first": Setting("adaserve", overrides=Overrides(order=Order.ATTAINABLE)),
    "pre-empted": Setting("adaserve", pages=40),
    "pre-empted, no reuse": Setting("spec:3", pages=36, prefix_caching=False),
    "look-up": Setting("adaserve", draft="ngram"),
    "look-up chain": Setting("spec:3", draft="ngram"),
    "both": Setting("adaserve", draft="model+ngram"),
    "both, in plus": Setting("adaserve+", draft="model+ngram"),
    "both, coupled, deep": Setting(
        "adaserve", draft="model+ngram", overrides=Overrides(depth=7, width=3, coupled=True), constants=small(verify_rows=300)
    ),
    "both, pre-empted": Setting("spec:4", draft="model+ngram", pages=36),
    "both, padded": Setting("adaserve", draft="model+ngram", overrides=Overrides(depth=4, width=2), padded=True),
    "look-up by tenant": Setting("adaserve", draft="ngram by tenant"),
    "look-up by tenant, chain, pre-empted": Setting("spec:3", draft="ngram by tenant", pages=36),
    "look-up by tenant, padded": Setting("adaserve", draft="ngram by tenant", padded=True),
    "both by tenant, in plus": Setting("adaserve+", draft="model+ngram by tenant"),
    "both by tenant, captured": Setting(
        "adaserve", draft="model+ngram by tenant", overrides=Overrides(depth=4, width=2), captured=True
    ),
    "no draft": Setting("adaserve", draft="none"),
    "pages of one": Setting("adaserve", page_size=1, pages=1600),
    "pre-empted, pages of one": Setting("spec:8", page_size=1, pages=150),
    "coupled": Setting("adaserve", overrides=Overrides(depth=4, width=3, coupled=True), constants=small(verify_rows=60)),
    "coupled chain": Setting("spec:4", overrides=Overrides(coupled=True)),
    "coupled, pre-empted": Setting("adaserve", pages=40, overrides=Overrides(coupled=True)),
    "uncoupled plus": Setting("adaserve+", overrides=Overrides(coupled=False)),
    "padded": Setting("adaserve", padded=True),
    "captured": Setting("adaserve", captured=True),
    "captured, in plus, coupled": Setting("adaserve+", captured=True),
    "captured chain, pre-empted": Setting("spec:4", pages=36, captured=True),
    "captured, both": Setting("adaserve", draft="model+ngram", overrides=Overrides(depth=4, width=2), captured=True),
    "captured, plain": Setting("continuous", captured=True),
    "captured, small chunks": Setting("adaserve", constants=small(prompt_rows=3, idle_prompt_rows=3), captured=True),
    "padded, coupled": Setting("adaserve+", padded=True),
    "padded chain, pre-empted": Setting("spec:4", pages=40, padded=True),
    "padded look-up": Setting("adaserve", draft="ngram", padded=True),
    "padded, plain": Setting("continuous", padded=True),
    "throughput, big pages": Setting("throughput", page_size=32, pages=60),
    "sarathi": Setting("sarathi", overrides=Overrides(budget=11)),
    "specinfer": Setting("specinfer"),
    "vtc, pre-empted": Setting("vtc", pages=36),
    "priority, pre-empted for slots": Setting("priority", slots=4),
    "fastserve, pre-empted for slots": Setting("fastserve", slots=4, overrides=Overrides(budget=3), prefix_caching=False),
}
SAMPLING = {
    0.0: [SamplingParams(max_tokens=m, temperature=0.0, min_tokens=1) for m in (1, 5, 24)],
    0.7: [
        SamplingParams(max_tokens=m, temperature=0.7, top_p=p, top_k=k) for m, p, k in ((3, 1.0, 0), (20, 0.9, 0), (20, 1.0, 12))
    ],
    1.0: [SamplingParams(max_tokens=m, temperature=1.0, ignore_eos=m == 24) for m in (2, 12, 24)],
    1.1: [
        SamplingParams(max_tokens=16, temperature=1.0, min_p=0.05, min_tokens=6, logit_bias={3: 2.0, 50: -100.0}),
        SamplingParams(max_tokens=16, temperature=0.8, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2),
        SamplingParams(max_tokens=16, temperature=0.0, frequency_penalty=0.7),
        SamplingParams(max_tokens=16, temperature=0.0, frequency_penalty=0.5, min_tokens=8, ignore_eos=True),
    ],
}


@pytest.fixture(scope="module", params=sorted(SAMPLING), ids=lambda t: f"temperature {t}")
def reference(request: pytest.FixtureRequest) -> tuple[float, Run]:
    """What plain decoding says, one request at a time."""
    requests = random_requests(random.Random(request.param), REQUESTS, SAMPLING[request.param])
    return request.param, run(engine_for(tiny_models(), PLAIN), requests, check=False)


@pytest.mark.parametrize("name", SETTINGS)
def test_law(reference: tuple[float, Run], name: str) -> None:
    """Whatever the setting, each request gets the tokens that plain decoding gives it."""
    temperature, plain = reference
    setting = SETTINGS[name]
    requests = random_requests(random.Random(temperature), REQUESTS, SAMPLING[temperature])
    found = run(engine_for(tiny_models(), setting), requests, burst=3)
    assert found.tokens == plain.tokens
    preempted = sum(r.preemptions for r in found.results.values())
    assert ("pre-empted" in name) == (preempted > 0), "a case about pre-emption must pre-empt, the others should not"


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("name", ["spec:4", "adaserve"])
def test_the_law_is_not_vacuous(name: str, temperature: float) -> None:
    """More than one draft token per request and step was accepted on average: the trees do real work."""
    long = [SamplingParams(max_tokens=40, temperature=temperature, ignore_eos=True)]
    requests = random_requests(random.Random(5), 24, long)
    models = tiny_models(noise=0.02, scale=16.0)
    plain = run(engine_for(models, PLAIN), requests, check=False)
    found = run(engine_for(models, Setting(name, constants=small(verify_rows=200, draft_rows=40))), requests)
    assert found.tokens == plain.tokens
    assert found.accepted_per_step > 1.0


def test_a_wrong_acceptance_rule_is_caught() -> None:
    """Negative control: other seeds give other tokens, so equality above is no accident of degenerate models."""
    sampling = [SamplingParams(max_tokens=24, temperature=1.0, ignore_eos=True)]
    one = run(engine_for(tiny_models(), PLAIN), random_requests(random.Random(1), 8, sampling), check=False)
    models = tiny_models(seed=7)
    other = run(engine_for(models, PLAIN), random_requests(random.Random(1), 8, sampling), check=False)
    assert all(one.tokens[r] != other.tokens[r] for r in one.tokens)
