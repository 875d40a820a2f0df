"""What ranks say to each other arrives as it was sent, or is refused."""

import struct
from socket import socketpair

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.errors import EngineFailed
from adaserve.parallel.messages import Commit, Failed, Here, Link, Load, Loaded, Message, Plan, Serve, Tree
from adaserve.request import SamplingParams
from adaserve.step import Chunk, Limits, Order, PageGrant, Placement, StepPlan
from tests.parallel.worlds import groups

NUMBERS = st.integers(0, 2**31)
FLOATS = st.floats(allow_nan=False)
CHUNKS = st.builds(Chunk, NUMBERS, NUMBERS, NUMBERS, st.booleans())
SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 9),
    temperature=st.floats(0, 2),
    logit_bias=st.dictionaries(st.integers(0, 99), st.floats(-9, 9), max_size=2),
    stop=st.lists(st.text(min_size=1, max_size=3), max_size=2).map(tuple),
)


def tuples(items: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(items, max_size=3).map(tuple)


PLANS = st.builds(
    StepPlan,
    released=tuples(NUMBERS),
    placed=tuples(
        st.builds(
            Placement, NUMBERS, tuples(NUMBERS), NUMBERS, SAMPLING, st.integers(0, 2**64 - 1), NUMBERS, tuples(NUMBERS), st.text()
        )
    ),
    grants=tuples(st.builds(PageGrant, NUMBERS, NUMBERS, tuples(NUMBERS))),
    decoding=tuples(NUMBERS),
    need=tuples(FLOATS),
    temperature=tuples(FLOATS),
    room=tuples(NUMBERS),
    drafting=tuples(st.none() | CHUNKS),
    chunks=tuples(CHUNKS),
    catch_up=tuples(CHUNKS),
    limits=st.builds(Limits, NUMBERS, NUMBERS, NUMBERS, st.sampled_from(Order), tuples(FLOATS)),
    depth=NUMBERS,
    width=NUMBERS,
    predicted=FLOATS,
)


@given(plan=PLANS)
def test_a_plan_arrives_whole(plan: StepPlan) -> None:
    """To the last bit: slots, pages and sampling of all ranks hang on it."""
    ours, theirs = map(Link, socketpair())
    ours.send(Plan(plan))
    assert theirs.hear() == Plan(plan)
    ours.close()
    assert theirs.hear() is None
    theirs.close()


@pytest.mark.parametrize(
    "message", [Load(1, 2, "m", "/m", "gguf file", "float64", "cpu", 1, 9.0), Serve(1, 2, 3, 4), Tree(7, 9), Commit()]
)
def test_other_messages_to_a_rank(message: Message) -> None:
    ours, theirs = map(Link, socketpair())
    ours.send(message)
    assert theirs.hear() == message


@pytest.mark.parametrize("message", [Here(), Loaded(None), Loaded(1 << 40), Failed("why", wanted=True)])
def test_answers_of_a_rank(message: Message) -> None:
    ours, theirs = map(Link, socketpair())
    theirs.send(message)
    assert ours.answer() == message


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (struct.pack("<I", 3) + b"abc", "malformed"),
        (struct.pack("<I", 2**32 - 1), "beyond the limit"),
        (struct.pack("<I", 8) + b"\x92\xa4Tree\xa1x", "malformed"),  # columns "x"
    ],
)
def test_what_is_no_message_is_refused(frame: bytes, problem: str) -> None:
    ours, theirs = socketpair()
    ours.sendall(frame)
    with pytest.raises(EngineFailed, match=problem):
        Link(theirs).hear()


def test_sending_to_a_rank_that_has_gone() -> None:
    ours, theirs = socketpair()
    theirs.close()
    with pytest.raises(EngineFailed, match="has gone"):
        Link(ours).send(Tree(1, 2))


def test_a_rank_that_does_not_answer() -> None:
    """A collective that only one rank joins is an error after a while, not a wait without end."""
    first, _ = groups(2, timeout=0.5)
    with pytest.raises(EngineFailed, match="lost each other"):
        first.sum(torch.zeros(4))
