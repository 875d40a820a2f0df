"""A draft's quality: what the figures count, against twins that walk token by token."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.distill.evaluation import DEPTHS, WIDTHS, qualities, step_tokens
from adaserve.distill.output import table
from adaserve.executor.acceptance import RecordedOutput, Recording, join
from tests.recordings import random_recording


def chain_steps(recording: Recording, name: str, depth: int) -> float:
    """Tokens per step of a chain, one step after another: first choices count as long as they are right."""
    tokens = steps = 0
    for sequence in recording.classes[name]:
        ranks = recording.rank[recording.start[sequence] : recording.start[sequence + 1]].tolist()
        tokens += len(ranks)
        while ranks:
            right = next((i for i, rank in enumerate(ranks[:depth]) if rank), min(depth, len(ranks)))
            ranks = ranks[right + 1 :]
            steps += 1
    return tokens / steps


@given(seed=st.integers(0, 2**31), depth=st.integers(1, 6))
def test_a_chain_by_hand(seed: int, depth: int) -> None:
    recording = random_recording(np.random.default_rng(seed), outputs=3, length=20)
    for name in recording.classes:
        assert step_tokens(recording, name, depth, 1) == pytest.approx(chain_steps(recording, name, depth))


@given(seed=st.integers(0, 2**31))
def test_more_tree_is_never_worse(seed: int) -> None:
    """A tree of depth 1 holds the narrower ones; deeper chains hold the shorter ones. Neither can cost tokens of one step."""
    recording = random_recording(np.random.default_rng(seed), outputs=2, length=30)
    for name in recording.classes:
        wide = [step_tokens(recording, name, 1, width) for width in (1, 2, 3)]
        assert wide == sorted(wide) and wide[0] >= 1 and wide[-1] <= 2


def test_figures_of_a_recording_made_by_hand() -> None:
    prob = np.tile([0.5, 0.25, 0.125], (4, 1))
    output = RecordedOutput(prob, np.array([0, 1, 0, 3]), (1, 2))
    found = qualities(join({"chat": [output]}, pair="hand", temperature=0.0, source="hand"))["chat"]
    assert found.tokens == 4 and found.agreement == 0.5 and found.coverage == (0.5, 0.75, 0.75)
    [bin_] = [b for b in found.reliability if b.count]
    assert (bin_.count, bin_.predicted, bin_.accepted) == (4, 0.5, 0.5)
    # a chain of 1: (0, 1) and (0, 3) are two steps; a tree of width 3 takes the same pairs, and no step gains more
    assert found.step_tokens[1][1] == 2.0 and found.step_tokens[1][3] == 2.0
    assert set(found.step_tokens) == set(DEPTHS) and set(found.step_tokens[1]) == set(WIDTHS)
    assert "| chat | 4 | 0.500 → 0.500 | 0.750 → 0.750 |" in table({"chat": found}, {"chat": found})
