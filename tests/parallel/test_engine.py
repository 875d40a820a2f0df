"""The first law over ranks: an engine whose target is shared gives each request the tokens that one rank gives it."""

import random
import time

import pytest
import torch

from adaserve.assembly import Models
from adaserve.models.random import noisy_copy, random_weights, tiny_config
from adaserve.models.weights import assemble
from adaserve.parallel.executor import tree_of, tree_words
from adaserve.policy.library import Overrides
from adaserve.request import SamplingParams
from adaserve.tree import ROOT, CandidateTree
from tests.engines import VOCABULARY, Run, Setting, engine_for, random_requests, run
from tests.parallel.worlds import shared_engine

PLAIN = Setting("continuous", draft="none", slots=1, pages=120, prefix_caching=False)
CONFIG = tiny_config(heads=8, kv_heads=4, intermediate=96, vocab_size=VOCABULARY)
WEIGHTS = random_weights(CONFIG, 0, scale=4.0)
DRAFT = assemble(CONFIG, noisy_copy(WEIGHTS, 0.05, 1), "draft", dtype=torch.float64)
SAMPLING = {
    "greedy": [SamplingParams(max_tokens=m, temperature=0.0) for m in (1, 5, 20)],
    "sampled": [
        SamplingParams(max_tokens=16, temperature=1.0, ignore_eos=True),
        SamplingParams(max_tokens=3, temperature=0.7, top_p=0.9, top_k=12),
        SamplingParams(max_tokens=12, temperature=0.8, repetition_penalty=1.3, presence_penalty=0.4, min_tokens=4),
        SamplingParams(max_tokens=8, temperature=1.0, min_p=0.05, logit_bias={3: 2.0, 50: -100.0}, logprobs=3),
    ],
}
SETTINGS = {
    "adaserve": (Setting("adaserve"), 2),
    "four ranks": (Setting("adaserve"), 4),
    "spec4, pre-empted": (Setting("spec:4", pages=24), 2),
    "look-up": (Setting("adaserve", draft="ngram"), 2),
    "both drafters": (Setting("adaserve", draft="model+ngram"), 2),
    "both drafters by tenant": (Setting("adaserve", draft="model+ngram by tenant"), 2),
    "plus, pages of one": (Setting("adaserve+", page_size=1, pages=1600), 2),
    "padded, pre-empted": (Setting("adaserve", pages=20, padded=True), 2),
    "no draft, no reuse": (Setting("sarathi", draft="none", prefix_caching=False, overrides=Overrides(budget=11)), 2),
}


@pytest.fixture(scope="module", params=SAMPLING)
def reference(request: pytest.FixtureRequest) -> tuple[str, Run]:
    """What one rank says, without speculation, one request at a time."""
    target = assemble(CONFIG, WEIGHTS, "target", dtype=torch.float64)
    requests = random_requests(random.Random(3), 24, SAMPLING[request.param])
    return request.param, run(engine_for(Models(target), PLAIN), requests, check=False)


@pytest.mark.parametrize("name", SETTINGS)
def test_law_over_ranks(reference: tuple[str, Run], name: str) -> None:
    kind, plain = reference
    setting, size = SETTINGS[name]
    requests = random_requests(random.Random(3), 24, SAMPLING[kind])
    with shared_engine(CONFIG, WEIGHTS, DRAFT if setting.draft.startswith("model") else None, setting, size) as engine:
        found = run(engine, requests, burst=3)
    assert found.tokens == plain.tokens
    preempted = sum(r.preemptions for r in found.results.values())
    assert ("pre-empted" in name) == (preempted > 0), "a case about pre-emption must pre-empt, the others should not"
    if setting.draft.startswith("model"):
        assert sum(r.accepted for r in found.results.values()) > 0, "speculation that is never accepted proves little"


def test_no_rank_waits_in_a_collective_for_a_caller_who_pauses() -> None:
    """Nor for one who leaves while a promised step is under way."""
    setting, sampling = Setting("continuous", draft="none", padded=True), SamplingParams(max_tokens=30, ignore_eos=True)
    with shared_engine(CONFIG, WEIGHTS, None, setting, 2, timeout=1.0) as engine:
        for request in random_requests(random.Random(1), 3, [sampling]):
            engine.add(request)
        for _ in range(12):
            assert engine.step() is not None
        flight = engine._flight
        assert flight is not None and flight.plan.again
        time.sleep(2.5)
        assert engine.step() is not None


def test_words_hold_a_tree() -> None:
    """What comes out of the words is what went in, at the ends of the ranges too."""
    token = torch.tensor([[0, 2**32 - 1, 7], [128255, 1, 2**31]])
    parent = torch.tensor([[ROOT, 0, 2**14 - 2], [ROOT, ROOT, 1]])
    depth = torch.tensor([[1, 2, 2**14 - 1], [1, 1, 2]])
    prob = torch.tensor([[0.9, 0.5, 0.1], [0.3, 0.2, 0.0]], dtype=torch.float64)
    chosen = torch.tensor([[True, True, False], [True, False, True]])
    tree, again = tree_of(tree_words(CandidateTree(token, parent, depth, prob, torch.zeros_like(token)), chosen))
    assert torch.equal(again, chosen)
    assert torch.equal(tree.token, token)
    assert torch.equal(tree.parent, parent)
    assert torch.equal(tree.depth, depth)
