"""The first law and the main promises on the real model: SmolLM2-135M with its draft, bfloat16 weights, on the CPU."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from adaserve.build import Parts, load_parts
from adaserve.config import EngineConfig
from adaserve.errors import ModelNotFound
from adaserve.models.pull import pull
from adaserve.policy.adaptive import Constants
from adaserve.profile import Profile
from adaserve.request import Request, SamplingParams, Targets
from adaserve.workload.prompts import prompts
from tests.engines import PROFILE, Run, run

pytestmark = pytest.mark.e2e
REQUESTS = 50
CONSTANTS = Constants(verify_rows=160, draft_rows=32, depth_max=3, width_max=2, prompt_rows=48)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """The demo pair, loaded once; step times are not measured, for no test here looks at time."""
    try:
        pull("demo")
    except ModelNotFound as error:
        pytest.skip(f"the demo model cannot be fetched: {error}")
    profile = tmp_path_factory.mktemp("profile") / "profile.json"
    Profile(**vars(PROFILE)).save(profile)
    yield load_parts(EngineConfig("demo", profile=str(profile), max_num_seqs=16, kv_tokens=6000), lambda line: None)


def requests(parts: Parts, seed: int) -> list[Request]:
    """Prompts of all three classes, at temperatures 0, 0.7 and 1."""
    rng = random.Random(seed)
    texts = [(kind, text) for kind in ("coding", "chat", "summarization") for text in prompts(kind)]
    made = []
    for number in range(REQUESTS):
        kind, text = rng.choice(texts)
        ids = parts.tokenizer.encode(text) if kind == "coding" else parts.tokenizer.chat([{"role": "user", "content": text}])
        sampling = SamplingParams(
            max_tokens=rng.choice([1, 8, 20]), temperature=rng.choice([0.0, 0.7, 1.0]), top_p=rng.choice([1.0, 0.9])
        )
        made.append(
            Request(
                id=str(number),
                prompt=tuple(ids),
                sampling=sampling,
                targets=Targets(tpot=rng.choice([None, 0.01, 0.05])),
                seed=rng.getrandbits(63),
                arrived=0.0,
                stop_ids=parts.eos_ids,
                slo_class=kind,
            )
        )
    return made


@pytest.fixture(scope="module")
def plain(parts: Parts) -> Run:
    """What decoding without speculation says."""
    return run(parts.engine(parts.policy("continuous")), requests(parts, 0), check=False)


@pytest.mark.parametrize("policy", ["spec:2", "adaserve"])
def test_speculation_changes_no_token(parts: Parts, plain: Run, policy: str) -> None:
    """bfloat16 weights, float32 sums in one fixed order: not one of the tokens may differ, whatever the batch."""
    found = run(parts.engine(parts.policy(policy, CONSTANTS)), requests(parts, 0), burst=4)
    assert found.tokens == plain.tokens
    assert found.accepted_per_step > 0.3


def test_greedy_code_is_drafted_well(parts: Parts) -> None:
    """On code at temperature 0 the packaged draft is worth more than one token a step."""
    code = [
        replace(r, sampling=SamplingParams(max_tokens=32, temperature=0.0), stop_ids=())
        for r in requests(parts, 1)
        if r.slo_class == "coding"
    ][:6]
    found = run(parts.engine(parts.policy("adaserve", CONSTANTS)), code)
    assert found.accepted_per_step > 1.0
