"""The engine with a real executor on tiny models: faults, cancellation, logprobs, and what a step costs in bookkeeping."""

import random
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch

from adaserve.assembly import Models, Sizes, assemble_engine, make_executor
from adaserve.clock import WallClock
from adaserve.engine import Engine
from adaserve.metrics import RequestResult
from adaserve.policy.library import make_policy
from adaserve.request import FinishReason, Request, SamplingParams, Targets
from adaserve.server.engine_process import token_news
from adaserve.step import StepOutcome, StepPlan
from adaserve.tree import CandidateTree
from tests.captures import Replaying
from tests.engines import PROFILE, SMALL, Setting, engine_for, random_requests, run, tiny_models

LONG = [SamplingParams(max_tokens=30, temperature=0.7, ignore_eos=True)]


@pytest.mark.parametrize("captured", [False, True])
def test_cancel_in_every_phase_changes_nobody_else(captured: bool) -> None:
    """Requests cancelled while waiting, in their prompt and while decoding free everything; the others' tokens stay the same.

    captured: as on a GPU, where the next step is under way already.
    """
    models = tiny_models()
    requests = random_requests(random.Random(3), 18, LONG)
    expected = run(engine_for(models, Setting("adaserve")), requests)
    engine = engine_for(models, Setting("adaserve", slots=5, captured=captured))
    tokens: dict[str, list[int]] = {r.id: [] for r in requests}
    ends: dict[str, FinishReason] = {}
    for r in requests:
        engine.add(r)
    rng = random.Random(0)
    victims = {r.id for r in requests if rng.random() < 0.5}
    queue = sorted(victims)
    while True:
        if queue and rng.random() < 0.6:
            engine.cancel(queue.pop(rng.randrange(len(queue))))
        report = engine.step()
        if report is None:
            break
        for u in report.updates:
            assert u.id not in ends
            tokens[u.id] += u.tokens
            if u.finish is not None:
                ends[u.id] = u.finish
        engine.check()
    assert len(ends) == len(requests) and FinishReason.CANCELLED in ends.values()
    for r in requests:
        if r.id in victims:
            assert tokens[r.id] == expected.tokens[r.id][: len(tokens[r.id])]
        else:
            assert tokens[r.id] == expected.tokens[r.id]
    assert engine.step() is None


def test_a_row_of_nan_ends_its_own_request_only() -> None:
    """A poisoned embedding makes one request's logits NaN: it ends with an error, its batch mates keep their tokens."""
    models = tiny_models()
    healthy = [r for r in random_requests(random.Random(4), 8, LONG)]
    healthy = [replace(r, prompt=tuple(t if t != 99 else 98 for t in r.prompt)) for r in healthy]
    biased = SamplingParams(max_tokens=30, temperature=0.7, ignore_eos=True, logit_bias={99: -100.0})
    healthy = [replace(r, sampling=biased) for r in healthy]
    expected = run(engine_for(models, Setting("adaserve")), healthy)
    embedding = models.target.embedding.clone()
    embedding[99] = float("nan")
    poisoned = Models(replace(models.target, embedding=embedding), models.draft)
    engine = engine_for(poisoned, Setting("adaserve"))
    sick = Request("sick", (5, 99, 6), LONG[0], Targets(), seed=1, arrived=0.0)
    found = run(engine, [*healthy[:4], sick, *healthy[4:]])
    assert found.results["sick"].finish is FinishReason.ERROR and found.tokens["sick"] == []
    assert {k: v for k, v in found.tokens.items() if k != "sick"} == expected.tokens


def test_logprobs_are_those_of_plain_decoding() -> None:
    """Asked-for log-probabilities do not depend on speculation, and each token's own one is its log-softmax."""
    models = tiny_models()
    sampling = [SamplingParams(max_tokens=12, temperature=0.7, logprobs=3, ignore_eos=True), LONG[0]]
    requests = random_requests(random.Random(6), 10, sampling)

    def logprobs(setting: Setting) -> dict[str, list[float]]:
        engine = engine_for(models, setting)
        for r in requests:
            engine.add(r)
        found: dict[str, list[float]] = {r.id: [] for r in requests}
        while (report := engine.step()) is not None:
            for u in report.updates:
                assert len(u.logprobs) in (0, len(u.tokens))
                assert [p.token for p in u.logprobs] == list(u.tokens)[: len(u.logprobs)]
                found[u.id] += [p.logprob for p in u.logprobs]
        return found

    plain, trees = logprobs(Setting("continuous", draft="none")), logprobs(Setting("adaserve"))
    for r in requests:
        asked = r.sampling.logprobs is not None
        assert len(plain[r.id]) == (12 if asked else 0)
        torch.testing.assert_close(torch.tensor(plain[r.id]), torch.tensor(trees[r.id]), atol=1e-6, rtol=0)


def test_urgent_requests_get_more_of_the_trees() -> None:
    """Under a budget too small for all, requests with a tight target advance in fewer steps than those without."""
    models = tiny_models(noise=0.02, scale=16.0)
    greedy = [SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)]
    requests = [
        replace(r, id=f"{'urgent' if i % 2 else 'relaxed'}-{i}", targets=Targets(tpot=1e-6 if i % 2 else 10.0))
        for i, r in enumerate(random_requests(random.Random(8), 8, greedy))
    ]
    setting = Setting("adaserve")
    setting = replace(setting, constants=replace(setting.constants, verify_rows=16, depth_min=3, draft_rows=8, prompt_rows=50))
    found = run(engine_for(models, setting), requests)
    steps = {kind: sum(r.steps for k, r in found.results.items() if k.startswith(kind)) for kind in ("urgent", "relaxed")}
    assert steps["urgent"] < 0.8 * steps["relaxed"]


def test_a_failed_prompt_is_not_reused() -> None:
    """A request that shares a failed one's prefix, once the model is sound again, does not find its broken pages."""
    models = tiny_models()
    weights = models.target.embedding
    broken = weights.clone()
    broken[99] = float("nan")
    shared = (99, *range(40))
    engine = engine_for(Models(replace(models.target, embedding=broken), models.draft), Setting("adaserve"))
    first = run(engine, [Request("first", shared, LONG[0], Targets(), seed=1, arrived=0.0)])
    assert first.results["first"].finish is FinishReason.ERROR
    broken[99] = weights[99]
    again = Request("again", (*shared, 7), LONG[0], Targets(), seed=1, arrived=0.0)
    assert run(engine, [again]).tokens == run(engine_for(models, Setting("adaserve")), [again]).tokens


def test_a_device_is_not_kept_waiting_until_news_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host's work is beside the device's, a step's report is made when the next step's work is enqueued."""
    engine = engine_for(tiny_models(), Setting("adaserve", captured=True))
    done: list[str] = []
    for name in ("verify", "commit"):
        plain = getattr(engine._executor, name)
        monkeypatch.setattr(engine._executor, name, lambda *x, name=name, plain=plain: (done.append(name), plain(*x))[1])
    for request in random_requests(random.Random(3), 5, LONG):
        engine.add(request)
    told = 0
    while (report := engine.step()) is not None:
        told += report.outcome is not None
        done.append("told")
    assert done == ["verify", *["commit", "verify", "told"] * (told - 1), "commit", "told"] and told > 5


def test_a_step_that_cannot_begin_costs_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the step before it brought is told; the next call raises, and so does every further one."""
    engine = engine_for(tiny_models(), Setting("adaserve", captured=True))
    for request in random_requests(random.Random(3), 5, LONG):
        engine.add(request)
    assert engine.step() is not None

    def broken(plan: StepPlan) -> CandidateTree:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(engine._executor, "speculate", broken)
    report = engine.step()
    assert report is not None and report.outcome is not None and any(u.tokens for u in report.updates)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no memory left"):
            engine.step()


def test_an_executor_serves_another_engine_after_a_step_that_was_begun_and_dropped() -> None:
    models, sizes, policy = tiny_models(), Sizes(8, 200, 400, 4), make_policy("adaserve", SMALL)
    executor = make_executor(models, sizes, WallClock(), padded=True, capture=Replaying)
    requests = random_requests(random.Random(3), 5, LONG)

    def engine() -> Engine:
        return assemble_engine(models, sizes, policy, PROFILE, clock=WallClock(), executor=executor)

    dropped = engine()
    for request in requests:
        dropped.add(request)
    for _ in range(4):
        assert dropped.step() is not None
    assert run(engine(), requests).tokens == run(engine_for(models, Setting("adaserve")), requests).tokens


@pytest.mark.parametrize("captured", [False, True])
def test_what_goes_to_the_clients_is_each_ones_own(captured: bool) -> None:
    """Nodes drafted and verified steps, as they go over the wire, add up to what each request's result says, whoever hangs up."""
    engine = engine_for(tiny_models(), Setting("adaserve", captured=captured, slots=6))
    requests = random_requests(random.Random(5), 14, LONG)
    for request in requests:
        engine.add(request)
    rng, drafted, steps = random.Random(1), Counter[str](), Counter[str]()
    victims = [r.id for r in requests[::3]]
    results: dict[str, RequestResult] = {}
    while (report := engine.step()) is not None:
        for news in token_news(report):
            drafted[news.id] += news.drafted
            steps[news.id] += news.verified
            if news.result is not None:
                results[news.id] = news.result
        if victims and rng.random() < 0.4:
            engine.cancel(victims.pop())
    assert len(results) == len(requests) and sum(drafted.values()) > 50
    assert any(result.finish is FinishReason.CANCELLED for result in results.values())
    for name, result in results.items():
        assert (drafted[name], steps[name]) == (result.drafted, result.steps), name


def test_a_drafts_catching_up_is_of_the_step_whose_time_it_takes() -> None:
    """Where it runs behind the target's pass, that is the next one."""
    engine = engine_for(tiny_models(), Setting("adaserve", captured=True))
    for request in random_requests(random.Random(3), 5, LONG):
        engine.add(request)
    before, seen = 0, 0
    while (report := engine.step()) is not None:
        assert report.outcome is not None
        plan, shape = report.outcome.plan, report.outcome.shape
        reads = sum(chunk.length for chunk in plan.drafting if chunk is not None) if plan.depth else 0
        assert sum(shape.draft_rows[:1]) == reads + before
        before = sum(chunk.length for chunk in plan.catch_up)
        seen += before > 0
    assert seen > 1


def test_a_policy_learns_from_every_step_once_while_the_next_one_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, the last one too; what it is told includes how long scheduling took, and learning itself."""
    learned: list[StepOutcome] = []
    done: list[str] = []

    class Noted:
        def learn(self, outcome: StepOutcome) -> None:
            learned.append(outcome)
            done.append("learn")
            time.sleep(0.002)

    policy = replace(make_policy("adaserve", SMALL), learner=Noted())
    engine = engine_for(tiny_models(), Setting("adaserve"), policy)
    for name in ("verify", "commit"):
        plain = getattr(engine._executor, name)
        monkeypatch.setattr(engine._executor, name, lambda *x, name=name, plain=plain: (done.append(name), plain(*x))[1])
    for request in random_requests(random.Random(3), 5, LONG):
        engine.add(request)
    assert (report := engine.step()) is not None and report.outcome is not None and not learned
    engine.learn()  # as closing does; a second time brings nothing
    engine.learn()
    assert learned == [report.outcome]
    learned.clear()
    done.clear()
    made: list[StepOutcome] = []
    while (report := engine.step()) is not None:
        if report.outcome is not None:
            assert learned == made
            made.append(report.outcome)
    assert learned == made and len(made) > 5
    assert done == ["verify", "commit", *["verify", "learn", "commit"] * (len(made) - 1), "learn"]
    assert all(outcome.times.schedule > 0.002 for outcome in learned[1:])
