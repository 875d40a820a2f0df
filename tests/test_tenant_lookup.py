"""Look-up over a tenant's earlier requests, through whole engines: who profits, who does not, and that no token changes."""

import random
from dataclasses import replace

import pytest

from adaserve.assembly import Sizes, assemble_engine, make_executor
from adaserve.clock import WallClock
from adaserve.config import EngineConfig
from adaserve.engine import Engine
from adaserve.errors import InvalidConfig
from adaserve.metrics import RequestResult
from adaserve.policy.library import make_policy
from adaserve.request import Request, SamplingParams
from tests.engines import NOTHING_FIXED, PROFILE, SMALL, Setting, engine_for, random_requests, run, tiny_models
from tests.test_law import PLAIN

SAMPLED = [SamplingParams(max_tokens=40, temperature=1.0, ignore_eos=True)]
SETTINGS = {
    "look-up": Setting("spec:4", draft="ngram by tenant"),
    "both": Setting("spec:4", draft="model+ngram by tenant"),
    "look-up, captured": Setting("spec:4", draft="ngram by tenant", captured=True),
}


def asked(count: int = 6, salt: str = "ours", again: str = "") -> list[Request]:
    """The same requests, seeds included, whenever they are asked: their texts are the same too."""
    requests = random_requests(random.Random(2), count, SAMPLED)
    return [replace(r, id=f"{r.id}{again} of {salt}", cache_salt=salt) for r in requests]


def pace(results: dict[str, RequestResult]) -> float:
    """Tokens a step."""
    return sum(r.steps + r.accepted for r in results.values()) / sum(r.steps for r in results.values())


@pytest.mark.parametrize("name", SETTINGS)
def test_who_asks_again_gains_more_a_step_and_nobody_else_does(name: str) -> None:
    models = tiny_models(noise=0.5, scale=4.0)
    engine = engine_for(models, SETTINGS[name])
    first = run(engine, asked())
    other = run(engine, asked(salt="theirs"))
    again = run(engine, asked(again=" again"))
    assert list(first.tokens.values()) == list(other.tokens.values()) == list(again.tokens.values())
    assert list(first.tokens.values()) == list(run(engine_for(models, PLAIN), asked(), check=False).tokens.values())
    assert pace(again.results) > 1.5 * pace(first.results)
    assert pace(other.results) < 1.1 * pace(first.results)


def test_without_it_asking_again_gains_nothing() -> None:
    engine = engine_for(tiny_models(), Setting("spec:4", draft="ngram"))
    first, again = run(engine, asked()), run(engine, asked(again=" again"))
    assert pace(again.results) == pytest.approx(pace(first.results), abs=0.1)


def test_a_text_helps_while_it_is_being_written() -> None:
    """Two that say the same, one of which is ahead by some steps."""
    engine = engine_for(tiny_models(), Setting("spec:4", draft="ngram by tenant"))
    ahead, behind = asked(1)[0], asked(1, again=" again")[0]
    alone = run(engine, [replace(ahead, cache_salt="another")])
    engine.add(ahead)
    for _ in range(15):
        engine.step()
    engine.add(behind)
    results = {}
    while (report := engine.step()) is not None:
        results |= {u.id: u.result for u in report.updates if u.result is not None}
    assert pace({"behind": results[behind.id]}) > pace(alone.results) + 0.3


def test_drafts_may_depend_on_others_and_tokens_must_not() -> None:
    """Requests of one tenant, in either order and few or many at once: steps differ, texts do not."""
    requests = random_requests(random.Random(8), 24, [SamplingParams(max_tokens=m, temperature=0.7) for m in (10, 30)])
    requests += [replace(r, id=f"{r.id} again") for r in requests]
    found = []
    for order, slots in ((requests, 2), (requests, 48), (requests[::-1], 2)):
        engine = engine_for(tiny_models(), Setting("adaserve", draft="ngram by tenant", slots=slots, pages=2000))
        found.append(run(engine, order))
    assert found[0].tokens == found[1].tokens == found[2].tokens
    steps = [{key: result.steps for key, result in one.results.items()} for one in found]
    assert steps[0] != steps[1] and steps[0] != steps[2]


def test_another_engine_of_the_same_executor_owes_the_last_one_nothing() -> None:
    models = replace(tiny_models(), draft=None, lookup=True, recalls=True)
    sizes, clock = Sizes(8, 200, 400, 4), WallClock()
    executor = make_executor(models, sizes, clock)

    def another() -> Engine:
        policy = make_policy("spec:4", SMALL, NOTHING_FIXED)
        return assemble_engine(models, sizes, policy, PROFILE, clock=clock, executor=executor)

    first, second = run(another(), asked()), run(another(), asked())
    assert pace(second.results) == pytest.approx(pace(first.results), abs=0.1)


def test_a_config_that_looks_nowhere_is_refused() -> None:
    assert EngineConfig(draft="ngram", lookup="tenant").looks_up
    for draft in ("none", "demo", None):
        with pytest.raises(InvalidConfig, match="needs a draft that looks text up"):
            EngineConfig(draft=draft, lookup="tenant")
    with pytest.raises(InvalidConfig, match="one of own, tenant"):
        EngineConfig(draft="ngram", lookup="everywhere")
