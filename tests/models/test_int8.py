"""Weights stored as int8 come back nearly as they were, and broken files are named."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.errors import InvalidModel
from adaserve.models.int8 import Int8Weights, to_int8


@given(seed=st.integers(0, 2**31), rows=st.integers(1, 5), columns=st.sampled_from([64, 128, 48, 1]), zero=st.booleans())
def test_round_trip(seed: int, rows: int, columns: int, zero: bool) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * (0.0 if zero else 0.05)
    norm = torch.arange(4, dtype=torch.float32)
    weights = Int8Weights(to_int8({"m": matrix, "n": norm}), "file")
    assert set(weights) == {"m", "n"} and len(weights) == 2 and torch.equal(weights["n"].float(), norm)
    groups = matrix.view(rows, -1, 64 if columns % 64 == 0 else columns)
    # half a step, and the largest entry may fall short by the rounding of the scale to bfloat16
    allowed = (groups.abs().amax(-1, keepdim=True) * (0.5 / 127 + 2**-8)).expand_as(groups).reshape(rows, columns)
    assert ((weights["m"] - matrix).abs() <= allowed + 1e-12).all()


def test_broken_files_are_refused() -> None:
    stored = to_int8({"m": torch.randn(4, 64)})
    with pytest.raises(InvalidModel, match=r"file: tensor m is int8 and has no fitting m\.scale"):
        Int8Weights({"m": stored["m"]}, "file")["m"]
    with pytest.raises(InvalidModel, match="3 scales do not divide 64 columns"):
        Int8Weights({"m": stored["m"], "m.scale": torch.ones(4, 3)}, "file")["m"]
