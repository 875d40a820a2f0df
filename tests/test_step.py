"""What steps say of their times."""

from hypothesis import given
from hypothesis import strategies as st

from adaserve.step import PhaseTimes

seconds = st.floats(0, 10)


@given(st.builds(PhaseTimes, seconds, seconds, seconds, seconds, seconds), seconds)
def test_the_host_hides_behind_the_device(times: PhaseTimes, whole: float) -> None:
    """A step never takes longer than it took, unless the device alone says so; what fits is left as it is."""
    found = times.within(whole)
    device = times.speculate + times.select + times.verify
    assert found.total <= max(whole, device) + 1e-9
    assert (found.speculate, found.select, found.verify) == (times.speculate, times.select, times.verify)
    assert 0 <= found.commit <= times.commit and 0 <= found.schedule <= times.schedule
    if times.total <= whole - 1e-9:
        assert found == times
