"""Disconnects, slow readers, full queues, signals and deaths."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from adaserve.server.monitor import Monitor
from tests.server.conftest import KEY
from tests.server.launch import Server

LONG = {"model": "tiny", "prompt": "fox", "max_tokens": 500, "ignore_eos": True}


def send(
    server: Server, body: dict[str, object], path: str = "/v1/completions", receive_buffer: int | None = None
) -> socket.socket:
    """Send a request on a socket of its own and leave it there."""
    host, port = server.url.removeprefix("http://").split(":")
    wire = socket.socket()
    if receive_buffer is not None:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    wire.connect((host, int(port)))
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
    wire.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    return wire


def wait_for(condition: object, limit: float = 10.0) -> None:
    end = time.monotonic() + limit
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_a_disconnect_frees_everything(server: Server, stream: bool, reset: bool) -> None:
    server.wait_idle()
    cancelled = server.metric('adaserve:slo_requests_total{class="default",outcome="cancelled"}')
    wires = [send(server, LONG | {"stream": stream, "n": 2}) for _ in range(4)]
    wait_for(lambda: server.labelled("vllm:num_requests_running") == 8)
    for wire in wires:
        if reset:  # RST instead of FIN
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.close()
    server.wait_idle(5)
    assert server.labelled("vllm:kv_cache_usage_perc") == 0
    assert server.metric('adaserve:slo_requests_total{class="default",outcome="cancelled"}') == cancelled + 8


def test_disconnects_at_any_moment_leave_nothing_behind(server: Server) -> None:
    server.wait_idle()
    draw = random.Random(4)
    for number in range(120):
        body = LONG | {
            "stream": number % 2 == 0,
            "max_tokens": draw.choice([1, 3, 500]),
            "prompt": "fox " * draw.randrange(1, 60),
        }
        wire = send(server, body)
        time.sleep(draw.choice([0, 0, 0.005, 0.02]))
        if number % 3 == 0:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.close()
    half = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
    half.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{")
    half.close()
    assert server.http.post("/v1/completions", json=LONG | {"max_tokens": 2}).status_code == 200
    server.wait_idle(10)
    assert server.labelled("vllm:kv_cache_usage_perc") == 0
    assert "unforeseen" not in server.words() and "Traceback" not in server.words()


def test_a_slow_reader_is_cut_off(server: Server) -> None:
    server.wait_idle()
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "logprobs": True,
        "top_logprobs": 20,
        "n": 16,
    }
    wire = send(server, body | {"max_tokens": 450, "ignore_eos": True}, "/v1/chat/completions", receive_buffer=4096)
    try:
        wait_for(lambda: server.labelled("vllm:num_requests_running") == 16)
        before = server.labelled("vllm:generation_tokens_total")
        server.wait_idle(60)
        produced = server.labelled("vllm:generation_tokens_total") - before
        assert produced < 16 * 440, "it was cancelled, not finished"
        wait_for(lambda: "does not read" in server.words())
        assert not read_all(wire).endswith("0\r\n\r\n"), "the stream must not end as if it were whole"
    finally:
        wire.close()


def test_the_metrics_of_the_contract_are_there(server: Server) -> None:
    server.http.post("/v1/completions", json=LONG | {"max_tokens": 20, "slo": "easy", "temperature": 0}).raise_for_status()
    text = server.http.get("/metrics").text
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    plain = {
        "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total", "vllm:request_success_total", "vllm:spec_decode_num_drafts_total",
        "vllm:spec_decode_num_draft_tokens_total", "vllm:spec_decode_num_accepted_tokens_total", "adaserve:slo_requests_total",
        "adaserve:slo_attainment_ratio", "adaserve:verify_budget_rows", "adaserve:verify_budget_used_rows",
        "adaserve:selected_tokens_total", "adaserve:step_time_error_ratio",
    }  # fmt: skip
    histograms = {
        "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds", "vllm:request_time_per_output_token_seconds",
        "vllm:e2e_request_latency_seconds", "adaserve:accepted_tokens_per_step", "adaserve:step_seconds",
    }  # fmt: skip
    assert plain | {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")} <= names
    assert server.metric('adaserve:slo_attainment_ratio{class="easy"}') == 1
    assert server.metric('adaserve:step_seconds_count{phase="verify"}') > 0
    assert server.labelled("vllm:generation_tokens_total") >= 20


def test_two_monitors_do_not_share_anything() -> None:
    first, second = Monitor("a"), Monitor("b")
    first.refused.inc()
    assert b"adaserve:requests_refused_total 1.0" in first.text()
    assert b"adaserve:requests_refused_total 0.0" in second.text()


@pytest.fixture(scope="module")
def small(options: list[str]) -> Iterator[Server]:
    """A server with two slots and two places in its queue, to be stopped by its test."""
    running = Server([*options, "--max-num-seqs", "2", "--max-queue", "2", "--grace", "20"])
    try:
        yield running.wait_until_ready()
    finally:
        running.stop()


def test_a_full_queue_refuses_at_once_and_recovers(small: Server) -> None:
    wires = [send(small, LONG) for _ in range(4)]
    try:
        wait_for(lambda: small.labelled("vllm:num_requests_running") + small.labelled("vllm:num_requests_waiting") == 4)
        answer = small.http.post("/v1/completions", json=LONG)
        assert answer.status_code == 429 and answer.json()["error"]["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1
        assert small.http.get("/ready").status_code == 200
    finally:
        for wire in wires:
            wire.close()
    small.wait_idle(10)
    assert small.http.post("/v1/completions", json=LONG | {"max_tokens": 2}).status_code == 200
    assert small.http.post("/v1/completions", json=LONG | {"n": 5}).status_code == 400, "it could never be taken"


def test_sigterm_lets_running_answers_finish_and_a_second_one_ends_them(small: Server) -> None:
    short, long = [], []

    async def read(tokens: int, lines: list[str]) -> None:
        async with httpx.AsyncClient(base_url=small.url, timeout=60, trust_env=False) as http:
            body = LONG | {"max_tokens": tokens, "stream": True}
            async with http.stream("POST", "/v1/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        lines.append(line.removeprefix("data: "))

    readers = [
        threading.Thread(target=lambda: asyncio.run(read(500, long))),
        threading.Thread(target=lambda: asyncio.run(read(60, short))),
    ]
    for reader in readers:
        reader.start()
    wait_for(lambda: len(short) > 3 and len(long) > 3)
    small.process.send_signal(signal.SIGTERM)
    wait_for(lambda: "stopping: 2 requests" in small.words())
    refused = small.http.post("/v1/completions", json=LONG)
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
    assert small.http.get("/health").status_code == 200
    assert small.http.get("/ready").status_code == 503
    readers[1].join(30)
    assert short[-1] == "[DONE]"
    assert json.loads(short[-2])["choices"][0]["finish_reason"] == "length"
    small.process.send_signal(signal.SIGTERM)
    readers[0].join(30)
    assert long[-1] == "[DONE]"
    assert json.loads(long[-2])["error"]["code"] == "shutting_down"
    assert small.process.wait(20) == 0


def test_the_engines_death_ends_every_stream_and_the_server(options: list[str]) -> None:
    doomed = Server(options).wait_until_ready()
    wire = send(doomed, LONG | {"stream": True})
    whole = send(doomed, LONG)
    wait_for(lambda: doomed.labelled("vllm:num_requests_running") == 2)
    killed = time.monotonic()
    assert doomed.engine_pid is not None
    os.kill(doomed.engine_pid, signal.SIGKILL)
    wait_for(lambda: doomed.http.get("/health").status_code == 503, 5)
    text = read_all(wire)
    assert "engine_failed" in text and text.rstrip().removesuffix("0").rstrip().endswith("data: [DONE]")
    assert read_all(whole).startswith("HTTP/1.1 503")
    assert time.monotonic() - killed < 5
    assert doomed.process.wait(15) == 1, "a supervisor must see it"
    doomed.stop()


def test_the_servers_death_ends_the_engine_even_while_it_loads(options: list[str]) -> None:
    orphaned = Server(options)
    wait_for(lambda: orphaned.engine_pid is not None, 30)
    engine = orphaned.engine_pid
    assert engine is not None
    orphaned.process.kill()
    orphaned.process.wait()
    wait_for(lambda: gone(engine), 10)
    orphaned.stop()


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody waits for stays a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def read_all(wire: socket.socket) -> str:
    wire.settimeout(10)
    parts = []
    with wire, contextlib.suppress(ConnectionError, TimeoutError):
        while part := wire.recv(65536):
            parts.append(part)
    return b"".join(parts).decode(errors="replace")
