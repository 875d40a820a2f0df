"""Frames between the processes: what goes in comes out, and nothing else is believed."""

import os
import random
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.config import EngineConfig
from adaserve.errors import EngineFailed
from adaserve.metrics import RequestResult
from adaserve.request import FinishReason, Request, SamplingParams, Targets
from adaserve.server.engine_process import Wire
from adaserve.server.messages import (
    HEADER,
    MAX_FRAME,
    Cancel,
    Codec,
    Configure,
    Fatal,
    LoadingNews,
    Message,
    Ready,
    StatsNews,
    StepNews,
    Submit,
    TokenNews,
)
from adaserve.step import TokenLogprobs

REQUEST = Request(
    "cmpl-1-0-0",
    (1, 2, 3),
    SamplingParams(max_tokens=7, logit_bias={5: -1.5}, stop=("a", "b"), logprobs=2, seed=2**64 - 1),
    Targets(0.05, None),
    2**64 - 1,
    12.5,
    choice=3,
    slo_class="coding",
    stop_ids=(0, 9),
    cache_salt="salt",
)
RESULT = RequestResult("x", None, Targets(0.1), 1.0, 2.0, 3.0, 4.0, 5, 6, FinishReason.LENGTH, 0.02, drafted=3)
STATS = StatsNews(1, 2, 0.5, 64, 40, None, {"verify": 0.01})


@pytest.mark.parametrize("message", [Configure(EngineConfig(model="m", budget=3)), Submit(REQUEST), Cancel("a")])
def test_messages_to_the_engine_survive(message: Message) -> None:
    codec = Codec(Codec.TO_ENGINE)
    assert codec.decode(codec.frame(message)[HEADER.size :]) == message


@pytest.mark.parametrize(
    "message",
    [
        LoadingNews("loading"),
        Ready("m", 512, 100, 0.02, (0, 1), "m on cpu"),
        StepNews(1.5, (TokenNews("a", (1, 2), (TokenLogprobs(1, -0.5, 1, ((2, -1.0),)),), True, 3, 1),), STATS),
        StepNews(1.5, (TokenNews("a", (), finish=FinishReason.CANCELLED, result=RESULT),), STATS),
        Fatal("no such model", True),
    ],
)
def test_messages_from_the_engine_survive(message: Message) -> None:
    codec = Codec(Codec.FROM_ENGINE)
    assert codec.decode(codec.frame(message)[HEADER.size :]) == message


@given(st.binary(max_size=200))
def test_garbage_is_refused(body: bytes) -> None:
    with pytest.raises(EngineFailed):
        Codec(Codec.TO_ENGINE).decode(b"\x00" + body)
    codec = Codec(Codec.TO_ENGINE)
    try:
        message = codec.decode(body)
    except EngineFailed:
        return
    assert isinstance(message, Configure | Submit | Cancel)


def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(EngineFailed):
        Codec(Codec.TO_ENGINE).decode(Codec(Codec.FROM_ENGINE).frame(LoadingNews("x"))[HEADER.size :])


def test_an_endless_frame_is_refused_before_it_is_read() -> None:
    with pytest.raises(EngineFailed):
        Codec.length(HEADER.pack(MAX_FRAME + 1))


def test_frames_arrive_whole_however_the_socket_splits_them() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        codec = Codec(Codec.TO_ENGINE)
        messages = [Cancel(os.urandom(size % 90).hex()) for size in range(40)]
        data = b"".join(codec.frame(message) for message in messages)
        cuts = sorted(random.Random(1).sample(range(len(data)), 60))
        wire = Wire(theirs)
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            ours.sendall(data[start:end])
        ours.shutdown(socket.SHUT_WR)
        assert [wire.receive() for _ in messages] == messages
        assert wire.receive() is None
