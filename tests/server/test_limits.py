"""JSON is bounded before it is parsed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.server.limits import decode_json
from adaserve.server.problems import Kind, Problem

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('a[]{}"\\ é🙂')
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('ab["\\'), inner, max_size=4), max_leaves=20
)


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(trees, st.integers(0, 6))
def test_depth_is_what_it_is(value: object, limit: int) -> None:
    body = json.dumps(value).encode()
    if depth_of(value) > limit:
        with pytest.raises(Problem):
            decode_json(body, limit)
    else:
        assert decode_json(body, limit) == value


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nonsense", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1e999}', b'{"a": "\\ud800"}', b"\xff\xfe",
        b'{"a": 1}x', b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000,
    ],
)  # fmt: skip
def test_bad_json_is_refused_in_one_line(body: bytes) -> None:
    with pytest.raises(Problem) as caught:
        decode_json(body, 32)
    assert caught.value.kind is Kind.INVALID
    assert "\n" not in caught.value.message and len(caught.value.message) < 200


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_read(body: bytes) -> None:
    try:
        decode_json(body, 8)
    except Problem as problem:
        assert problem.status == 400
