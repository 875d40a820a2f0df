"""Open-loop replay on a tiny engine: to the end, cut short, and when the engine breaks down."""

import random
from dataclasses import replace

import pytest

from adaserve.bench.replay import Progress, ReplayFailed, replay, to_requests
from adaserve.engine import Engine, StepReport
from adaserve.request import Request, SamplingParams
from adaserve.workload import DEMO_MIX
from adaserve.workload.lengths import LengthRow, fill
from tests.engines import Setting, engine_for, random_requests, tiny_models

MODELS = tiny_models()
GREEDY = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)


def engine() -> Engine:
    return engine_for(MODELS, Setting("adaserve"))


def timed(count: int, gap: float) -> list[tuple[float, Request]]:
    return [(gap * n, request) for n, request in enumerate(random_requests(random.Random(0), count, [GREEDY]))]


def test_everybody_ends_and_counts() -> None:
    seen: list[Progress] = []
    played = replay(engine(), timed(12, 0.01), seen.append)
    assert {r.id for r in played.results} == {f"r{n}" for n in range(12)}
    assert all(r.completed for r in played.results) and not played.stopped
    arrivals = sorted(r.arrived for r in played.results)
    assert [at - arrivals[0] for at in arrivals] == pytest.approx([0.01 * n for n in range(12)])
    assert played.totals is not None and played.totals.tokens == sum(r.output_tokens - 1 for r in played.results)
    last = seen[-1]
    assert (last.arrived, last.running, last.ended) == (12, 0, 12)
    assert last.judged == sum(r.attained is not None for r in played.results)
    assert last.attained == sum(r.attained is True for r in played.results)


def test_steps_account_for_all_the_time_and_progress_goes_on_while_nothing_runs() -> None:
    heard: list[tuple[StepReport, float]] = []
    seen: list[Progress] = []

    def idle() -> list[Progress]:
        return [progress for progress in seen if progress.running == 0 and progress.ended == 1]

    played = replay(
        engine(),
        timed(2, 1e6),
        seen.append,
        stop=lambda: len(idle()) >= 3,
        on_step=lambda report, seconds: heard.append((report, seconds)),
    )
    assert played.totals is not None and len(heard) == played.totals.steps
    assert all(report.outcome is not None and 0 < report.outcome.times.total <= seconds for report, seconds in heard)
    assert sum(seconds for _, seconds in heard) <= played.seconds
    assert idle()[0].seconds < idle()[-1].seconds


def test_when_stopped_what_had_arrived_counts_as_unfinished_and_the_engine_is_empty() -> None:
    ended = 0

    def count(progress: Progress) -> None:
        nonlocal ended
        ended = progress.ended

    used = engine()
    later = [(at if n < 20 else 1e6, request) for n, (at, request) in enumerate(timed(30, 0.005))]
    played = replay(used, later, count, stop=lambda: ended >= 3)
    finished = [r for r in played.results if r.completed]
    unfinished = [r for r in played.results if not r.completed]
    assert played.stopped and len(finished) >= 3 and len(played.results) < 30
    assert all(r.finish is None and r.attained in (False, None) for r in unfinished)
    assert len({r.id for r in played.results}) == len(played.results)
    used.check()
    assert used.step() is None


def test_what_has_not_ended_when_draining_is_over_is_unfinished() -> None:
    played = replay(engine(), timed(20, 0.0), drain=0.02)
    assert not played.stopped
    assert len(played.results) == 20
    assert any(r.finish is None for r in played.results)


class Breaking:
    """An engine that breaks down at its n-th step, like a device that is gone."""

    def __init__(self, inner: Engine, steps: int) -> None:
        self._inner, self._left = inner, steps
        self.clock, self.add, self.cancel = inner.clock, inner.add, inner.cancel

    def step(self) -> StepReport | None:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("the device is gone")
        return self._inner.step()


def test_a_breakdown_loses_nothing_that_was_measured() -> None:
    with pytest.raises(ReplayFailed) as caught:
        replay(Breaking(engine(), 25), timed(30, 0.0))  # type: ignore[arg-type]
    played = caught.value.played
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert played.stopped and len(played.results) == 30 == len({r.id for r in played.results})
    assert any(r.completed for r in played.results) and any(r.attained is False for r in played.results)
    assert played.totals is not None and played.totals.steps > 0


class Letters:
    """A tokenizer of one token a character, as little as `to_requests` asks of one."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(character) % 100 for character in text]

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        return [0, *self.encode(messages[0]["content"])]


def test_made_up_prompts_have_exactly_the_stated_length() -> None:
    rows = [
        LengthRow(0.1 * n, length, 7, blocks) for n, (length, blocks) in enumerate([(5, None), (1300, (4, 5, 6)), (600, (4, 9))])
    ]
    made = to_requests(fill(rows, DEMO_MIX, 0), Letters(), 0.02, [3], temperature=0.0, seed=9)  # type: ignore[arg-type]
    assert [len(request.prompt) for _, request in made] == [5, 1300, 600]
    assert made[1][1].prompt[:512] == made[2][1].prompt[:512] and made[1][1].prompt[512:600] != made[2][1].prompt[512:]
    assert all(request.sampling.ignore_eos and request.stop_ids == () for _, request in made)
    assert [at for at, _ in made] == [row.at for row in rows]


def test_messages_go_through_the_template() -> None:
    workload = fill([LengthRow(0.0, 5, 7)], DEMO_MIX, 0)
    message = replace(workload.arrivals[0], prompt="hi", parts=(), chat=True, ignore_eos=False)
    made = to_requests(replace(workload, arrivals=(message,)), Letters(), 0.02, [3], temperature=0.0, seed=9)  # type: ignore[arg-type]
    assert made[0][1].prompt == (0, 4, 5) and made[0][1].stop_ids == (3,)
