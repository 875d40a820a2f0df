"""Recordings of acceptance: what a file keeps, what is refused, which positions a request walks along."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.errors import InvalidConfig
from adaserve.executor.acceptance import RecordedOutput, Recording, digest, join
from tests.recordings import random_recording

RECORDING = random_recording(np.random.default_rng(0))


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    RECORDING.save(tmp_path / "r.npz")
    read = Recording.load(tmp_path / "r.npz")
    np.testing.assert_allclose(read.prob, RECORDING.prob, rtol=1e-3, atol=1e-7)  # probabilities lose digits, nothing else does
    for name in ("rank", "start", "prompt"):
        np.testing.assert_array_equal(getattr(read, name), getattr(RECORDING, name))
    for name in ("classes", "pair", "temperature", "source"):
        assert getattr(read, name) == getattr(RECORDING, name)
    assert not read.coupled
    dataclasses.replace(RECORDING, coupled=True).save(tmp_path / "coupled.npz")
    assert Recording.load(tmp_path / "coupled.npz").coupled


@given(sequence=st.integers(0, 14), length=st.integers(1, 500))
def test_a_path_stays_in_its_class_and_in_order(sequence: int, length: int) -> None:
    path = RECORDING.path(sequence, length)
    mine = RECORDING.positions(RECORDING.classes[RECORDING.class_of(sequence)])
    own = min(length, RECORDING.length(sequence))
    start = RECORDING.start[sequence]
    assert path[:own].tolist() == list(range(start, start + own))
    assert all(b == a + 1 or (a == mine.stop - 1 and b == mine.start) for a, b in pairwise(path))


def test_an_unknown_class_may_follow_any_sequence() -> None:
    assert RECORDING.sequences("chat") == range(5, 10)
    assert RECORDING.sequences("translation") == RECORDING.sequences(None) == range(15)


def test_coverage_counts_the_first_choices() -> None:
    output = RecordedOutput(np.array([[0.5, 0.2], [0.6, 0.3], [0.4, 0.1], [0.9, 0.05]]), np.array([0, 1, 2, 0]), (1,))
    recording = join({"chat": [output]}, pair="", temperature=0.0, source="")
    assert [recording.coverage("chat", best) for best in (1, 2, 9)] == [0.5, 0.75, 0.75]


def test_equal_prompts_have_equal_digests_and_others_do_not() -> None:
    assert digest((1, 23)) == digest([1, 23])
    assert len({digest(p) for p in ((1, 23), (12, 3), (123,), (23, 1), ())}) == 5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prob": RECORDING.prob * 2}, "probabilities"),
        ({"prob": RECORDING.prob - RECORDING.prob.max(1, keepdims=True)}, "probabilities"),
        ({"prob": np.full_like(RECORDING.prob, np.nan)}, "probabilities"),
        ({"prob": RECORDING.prob[:, ::-1]}, "order"),
        ({"rank": RECORDING.rank + 9}, "ranks"),
        ({"rank": RECORDING.rank[1:]}, "rank"),
        ({"start": RECORDING.start[:-1]}, "cover"),
        ({"start": RECORDING.start[::-1]}, "cover"),
        ({"prompt": RECORDING.prompt[1:]}, "digest"),
        ({"classes": {"chat": range(0, 14)}}, "classes"),
        ({"classes": {"chat": range(0, 8), "coding": range(7, 15)}}, "classes"),
        ({"classes": {}}, "classes"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidConfig, match=reason):
        dataclasses.replace(RECORDING, **changes)  # type: ignore[arg-type]


def test_files_that_are_none_are_refused_in_a_line(tmp_path: Path) -> None:
    RECORDING.save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    np.savez(tmp_path / "other.npz", prob=RECORDING.prob)
    for name, data in (("cut.npz", whole[: len(whole) // 2]), ("empty.npz", b""), ("text.npz", b"prob"), ("zip.npz", whole[:-1])):
        (tmp_path / name).write_bytes(data)
    for name in ("cut.npz", "empty.npz", "text.npz", "zip.npz", "other.npz", "missing.npz"):
        with pytest.raises(InvalidConfig, match=name) as caught:
            Recording.load(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_nothing_cannot_be_recorded() -> None:
    with pytest.raises(InvalidConfig, match="no output"):
        join({"chat": []}, pair="", temperature=0.0, source="")
