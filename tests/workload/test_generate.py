from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.request import SLO
from adaserve.workload import DEMO_MIX, Mix, RequestClass, generate, generate_at, generate_fluctuating
from adaserve.workload.classes import CHAT, CODING, SUMMARIZATION
from adaserve.workload.prompts import prompts


@given(seed=st.integers(0, 2**32 - 1), rate=st.floats(0.5, 20))
def test_a_seed_fixes_everything(seed: int, rate: float) -> None:
    first, second = (generate(DEMO_MIX, rate, 5, np.random.default_rng(seed)) for _ in range(2))
    assert first == second


def test_shares_are_met() -> None:
    workload = generate(DEMO_MIX, 20, 500, np.random.default_rng(1))
    counts = Counter(arrival.class_name for arrival in workload.arrivals)
    for kind, share in DEMO_MIX.shares.items():
        assert counts[kind.name] / len(workload) == pytest.approx(share, abs=0.03)


def test_arrivals_carry_their_class() -> None:
    workload = generate(DEMO_MIX, 10, 20, np.random.default_rng(2))
    kinds = {kind.name: kind for kind in DEMO_MIX.shares}
    for arrival in workload.arrivals:
        kind = kinds[arrival.class_name]
        assert (arrival.slo, arrival.max_tokens, arrival.chat) == (kind.slo, kind.max_tokens, kind.chat)
        assert arrival.prompt in prompts(kind.name)


def test_prompts_repeat_only_when_all_were_used() -> None:
    workload = generate(Mix({CODING: 1.0}), 10, 8, np.random.default_rng(3))
    size = len(prompts("coding"))
    assert len(workload) > size
    assert len({arrival.prompt for arrival in workload.arrivals[:size]}) == size


def test_a_class_without_prompts_is_named() -> None:
    with pytest.raises(ValueError, match="poetry.*chat, coding, summarization"):
        generate(Mix({RequestClass("poetry", SLO(tpot_ms=10), 8, chat=True): 1.0}), 1, 10, np.random.default_rng(0))


@pytest.mark.parametrize("shares", [{}, {CODING: 0.5}, {CODING: 1.5, CHAT: -0.5}, {CODING: float("nan")}])
def test_shares_that_make_no_sense(shares: dict[RequestClass, float]) -> None:
    with pytest.raises(ValueError, match="shares"):
        Mix(shares)


def test_the_demo_targets_are_those_that_the_readme_states() -> None:
    assert [kind.slo for kind in (CODING, CHAT, SUMMARIZATION)] == [SLO(tpot_multiple=x) for x in (1.2, 1.8, 5.0)]


@pytest.mark.parametrize(("name", "count"), [("coding", 40), ("chat", 40), ("summarization", 20)])
def test_prompts_are_many_and_distinct(name: str, count: int) -> None:
    assert len(set(prompts(name))) == count
    assert all(prompt.strip() for prompt in prompts(name))


def test_coding_prompts_are_unfinished_python() -> None:
    """Each becomes valid Python when a body of one line is added."""
    for prompt in prompts("coding"):
        last = prompt.rstrip("\n").splitlines()[-1]
        indent = len(last) - len(last.lstrip()) + (4 if last.endswith(":") else 0)
        compile(prompt + " " * indent + "pass\n", "prompt", "exec")


def test_articles_are_of_the_stated_length() -> None:
    assert all(120 <= len(prompt.split()) <= 230 for prompt in prompts("summarization"))


@given(seed=st.integers(0, 99), cut=st.floats(1, 20))
def test_a_longer_workload_begins_with_the_shorter_one(seed: int, cut: float) -> None:
    short, long = (generate(DEMO_MIX, 5, seconds, np.random.default_rng(seed)) for seconds in (cut, 20.0))
    assert long.arrivals[: len(short)] == short.arrivals


def test_recorded_times_are_kept() -> None:
    times = [0.0, 0.5, 0.5, 3.0]
    assert [a.at for a in generate_at(times, DEMO_MIX, np.random.default_rng(0)).arrivals] == times


def test_classes_peak_one_after_the_other() -> None:
    workload = generate_fluctuating(DEMO_MIX, 30, 600, np.random.default_rng(0), period=60, swing=1.0)
    assert len(workload) == pytest.approx(30 * 600, rel=0.05)
    for index, (kind, share) in enumerate(DEMO_MIX.shares.items()):
        phases = [a.at / 60 - index / 3 for a in workload.arrivals if a.class_name == kind.name]
        # 1 + cos has a mean cosine of 1/2 and a mean sine of 0 around its own peak.
        assert np.mean(np.cos(2 * np.pi * np.array(phases))) == pytest.approx(0.5, abs=0.05)
        assert np.mean(np.sin(2 * np.pi * np.array(phases))) == pytest.approx(0.0, abs=0.05)
        assert len(phases) / len(workload) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(("period", "swing"), [(0, 0.5), (60, 1.5), (60, -0.1), (float("inf"), 0.5)])
def test_senseless_fluctuations(period: float, swing: float) -> None:
    with pytest.raises(ValueError, match="swing"):
        generate_fluctuating(DEMO_MIX, 1, 10, np.random.default_rng(0), period, swing)
