import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.request import SLO
from adaserve.workload import Arrival, Workload

slos = st.one_of(
    st.none(),
    st.builds(SLO, tpot_ms=st.floats(0.1, 1e4), ttft_ms=st.none() | st.floats(0.1, 1e4)),
    st.builds(SLO, tpot_multiple=st.floats(0.1, 100)),
)
workloads = st.lists(st.tuples(st.floats(0, 100), slos), max_size=20).map(
    lambda items: Workload(
        tuple(Arrival(at, "text", "any", slo, 8) for at, slo in sorted(items, key=lambda item: item[0])),
    )
)


@given(workload=workloads, speed=st.floats(0.1, 10))
def test_speed_changes_times_alone(workload: Workload, speed: float) -> None:
    faster = workload.at_speed(speed)
    assert [arrival.at for arrival in faster.arrivals] == [arrival.at / speed for arrival in workload.arrivals]
    assert [replace(arrival, at=0) for arrival in faster.arrivals] == [replace(arrival, at=0) for arrival in workload.arrivals]


@given(workload=workloads, factor=st.floats(0.1, 10))
def test_each_scale_leaves_the_other_kind_of_target_alone(workload: Workload, factor: float) -> None:
    pairs = zip(workload.arrivals, workload.scale_ms(factor).arrivals, workload.scale_multiples(factor).arrivals, strict=True)
    for before, in_ms, multiple in pairs:
        if before.slo is None:
            assert in_ms.slo is None and multiple.slo is None
        elif before.slo.tpot_ms is not None:
            assert in_ms.slo is not None and in_ms.slo.tpot_ms == before.slo.tpot_ms * factor
            assert (in_ms.slo.ttft_ms is None) == (before.slo.ttft_ms is None)
            assert multiple == before
        else:
            assert multiple.slo is not None and multiple.slo.tpot_multiple == before.slo.tpot_multiple * factor
            assert in_ms == before


@given(workload=workloads, seconds=st.floats(0, 100))
def test_cutting_keeps_what_comes_before(workload: Workload, seconds: float) -> None:
    kept = workload.until(seconds)
    assert all(arrival.at < seconds for arrival in kept.arrivals)
    assert all(arrival.at >= seconds for arrival in workload.arrivals[len(kept) :])


@pytest.mark.parametrize("times", [(1.0, 0.5), (-1.0,), (math.nan,)])
def test_times_must_ascend_from_zero(times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="arrival"):
        Workload(tuple(Arrival(at, "text", "any", None, 8) for at in times))


@pytest.mark.parametrize("speed", [0, -1, math.nan, math.inf])
def test_senseless_speeds(speed: float) -> None:
    with pytest.raises(ValueError, match="speed"):
        Workload(()).at_speed(speed)
