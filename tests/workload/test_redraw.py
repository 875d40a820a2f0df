from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.workload import DEMO_MIX, Workload, generate, with_urgent_share

BASE = generate(DEMO_MIX, 20, 100, np.random.default_rng(0))


def redrawn(share: float, seed: int = 0) -> Workload:
    return with_urgent_share(BASE, "coding", share, np.random.default_rng(seed))


@given(share=st.floats(0, 1), seed=st.integers(0, 99))
def test_times_stay_and_requests_are_the_trace_s_own(share: float, seed: int) -> None:
    found = redrawn(share, seed)
    assert [arrival.at for arrival in found.arrivals] == [arrival.at for arrival in BASE.arrivals]
    own = {(a.class_name, a.prompt, a.slo, a.max_tokens, a.chat) for a in BASE.arrivals}
    assert {(a.class_name, a.prompt, a.slo, a.max_tokens, a.chat) for a in found.arrivals} <= own
    assert found == redrawn(share, seed)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.9, 1.0])
def test_the_share_is_met_and_the_rest_is_even(share: float) -> None:
    counts = Counter(arrival.class_name for arrival in redrawn(share).arrivals)
    assert counts["coding"] / len(BASE) == pytest.approx(share, abs=0.04)
    for name in ("chat", "summarization"):
        assert counts[name] / len(BASE) == pytest.approx((1 - share) / 2, abs=0.04)


@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_higher_share_keeps_whoever_was_urgent(low: float, high: float) -> None:
    low, high = sorted((low, high))
    few, many = ([a.class_name == "coding" for a in redrawn(share).arrivals] for share in (low, high))
    assert all(later or not sooner for sooner, later in zip(few, many, strict=True))


@pytest.mark.parametrize(
    ("name", "share", "reason"), [("coding", 1.5, "between 0 and 1"), ("poetry", 0.5, "has no class 'poetry'")]
)
def test_senseless_shares(name: str, share: float, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        with_urgent_share(BASE, name, share, np.random.default_rng(0))


def test_one_class_alone_has_no_rest() -> None:
    alone = Workload(tuple(a for a in BASE.arrivals if a.class_name == "coding"))
    with pytest.raises(ValueError, match="no class beside 'coding'"):
        with_urgent_share(alone, "coding", 0.5, np.random.default_rng(0))
