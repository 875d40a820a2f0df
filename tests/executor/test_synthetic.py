"""Made-up recordings are as good as asked, and as honest about it as what they are drawn from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaserve.errors import InvalidConfig
from adaserve.executor.synthetic import resample
from tests.recordings import CLASSES, random_recording

RECORDING = random_recording(np.random.default_rng(0), outputs=40, length=100, vocabulary=10, sharpness=6.0)


@given(top1=st.floats(0.4, 0.8), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_first_choices_are_right_as_often_as_asked(top1: float, seed: int) -> None:
    drawn = resample(RECORDING, {"chat": top1}, np.random.default_rng(seed))
    error = 4 * (top1 * (1 - top1) / (64 * 256)) ** 0.5  # four standard errors
    assert drawn.coverage("chat", 1) == pytest.approx(top1, abs=error)
    assert drawn.coverage("coding", 1) == pytest.approx(RECORDING.coverage("coding", 1), abs=4 * (0.25 / (64 * 256)) ** 0.5)


def test_every_position_is_a_recorded_one_of_its_class() -> None:
    drawn = resample(RECORDING, dict.fromkeys(CLASSES, 0.7), np.random.default_rng(0), sequences=3, length=50)
    for name in CLASSES:
        recorded = {(rank, *row) for rank, row in _rows(RECORDING, name)}
        assert {(rank, *row) for rank, row in _rows(drawn, name)} <= recorded
        assert [drawn.length(s) for s in drawn.classes[name]] == [50, 50, 50]


def test_a_surer_draft_is_right_when_it_says_so() -> None:
    """The draft of RECORDING is calibrated: whatever the weights, a first choice of probability p is right with p."""
    drawn = resample(RECORDING, dict.fromkeys(CLASSES, 0.75), np.random.default_rng(0), sequences=500)
    said, right = drawn.prob[:, 0], drawn.rank == 0
    for low in (0.3, 0.5, 0.7, 0.9):
        band = (said > low) & (said <= low + 0.1)
        # As many different positions stand behind a band as were recorded there.
        recorded = ((RECORDING.prob[:, 0] > low) & (RECORDING.prob[:, 0] <= low + 0.1)).sum()
        assert right[band].mean() == pytest.approx(said[band].mean(), abs=5 * (0.25 / recorded) ** 0.5)


@pytest.mark.parametrize(("top1", "reason"), [({"chat": 1.0}, "choose between"), ({"prose": 0.5}, "no class 'prose'")])
def test_what_cannot_be_had_is_refused(top1: dict[str, float], reason: str) -> None:
    with pytest.raises(InvalidConfig, match=reason):
        resample(RECORDING, top1, np.random.default_rng(0))


def _rows(recording: object, name: str) -> list[tuple[int, list[float]]]:
    mine = recording.positions(recording.classes[name])  # type: ignore[attr-defined]
    return list(zip(recording.rank[mine].tolist(), recording.prob[mine].tolist(), strict=True))  # type: ignore[attr-defined]
