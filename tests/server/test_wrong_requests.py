"""Wrong requests answer at once, in one clear line that names the field, and the server lives on."""

import json
import socket
import time
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaserve.server.auth import PUBLIC
from tests.server.launch import Server

TEXT = {"model": "tiny", "prompt": "fox", "max_tokens": 2}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
DEEP: Any = {"a": 1}
for _ in range(40):
    DEEP = [DEEP]

# Body of a text completion, status, part of the message, param.
WRONG_TEXT: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"model": "gpt-9"}, 404, "does not exist", "model"),
    ({"model": 7}, 400, "string", "model"),
    ({"prompt": None}, 400, "prompt must be", "prompt"),
    ({"prompt": ""}, 400, "no tokens", "prompt"),
    ({"prompt": []}, 400, "empty", "prompt"),
    ({"prompt": ["a", 1]}, 400, "prompt must be", "prompt"),
    ({"prompt": [1, 100_000]}, 400, "between 0 and", "prompt"),
    ({"prompt": [-1]}, 400, "between 0 and", "prompt"),
    ({"prompt": [10**30]}, 400, "", "prompt"),
    ({"prompt": "fox " * 2000}, 400, "context holds 512", "prompt"),
    ({"prompt": ["a"] * 300}, 400, "at most 256 prompts", "prompt"),
    ({"max_tokens": 600}, 400, "exceed this server's context of 512", "max_tokens"),
    ({"max_tokens": 0}, 400, "max_tokens must be", "max_tokens"),
    ({"max_tokens": "5"}, 400, "integer", "max_tokens"),
    ({"temperature": -1}, 400, "temperature must be", "temperature"),
    ({"temperature": True}, 400, "number", "temperature"),
    ({"top_p": 0}, 400, "top_p must be", "top_p"),
    ({"top_k": -2}, 400, "top_k must be", "top_k"),
    ({"min_p": 2}, 400, "min_p must be", "min_p"),
    ({"n": 0}, 400, "between 1 and", "n"),
    ({"n": 100_000}, 400, "between 1 and", "n"),
    ({"seed": 2**70}, 400, "seed must be", "seed"),
    ({"stop": [""]}, 400, "non-empty", "stop"),
    ({"stop": 5}, 400, "stop must be", "stop"),
    ({"stop": ["x"] * 20}, 400, "at most 16", "stop"),
    ({"stop": "x" * 1000}, 400, "at most 256 characters", "stop"),
    ({"stop_token_ids": [5000]}, 400, "between 0 and", "stop_token_ids"),
    ({"min_tokens": 9}, 400, "min_tokens must be", "min_tokens"),
    ({"repetition_penalty": 0}, 400, "repetition_penalty must be", "repetition_penalty"),
    ({"presence_penalty": 3}, 400, "presence_penalty must be", "presence_penalty"),
    ({"logit_bias": {"5000": 1}}, 400, "between 0 and", "logit_bias"),
    ({"logit_bias": {"x": 1}}, 400, "token ids", "logit_bias"),
    ({"logit_bias": {"5": 1000}}, 400, "[-100, 100]", "logit_bias"),
    ({"logprobs": 21}, 400, "logprobs must be", "logprobs"),
    ({"logprobs": True}, 400, "integer", "logprobs"),
    ({"echo": True}, 400, "echo is not supported", "echo"),
    ({"best_of": 3}, 400, "best_of is not supported", "best_of"),
    ({"suffix": "x"}, 400, "suffix is not supported", "suffix"),
    ({"nonsense": 1}, 400, "unknown field 'nonsense'", "nonsense"),
    ({"stream_options": {"include_usage": True}}, 400, "needs stream", "stream_options"),
    ({"slo": "gold"}, 400, "unknown SLO class 'gold'; this server knows easy, hard, twice", "slo"),
    ({"slo": {"tpot_ms": 0}}, 400, "slo.tpot_ms must be a finite positive number", "slo.tpot_ms"),
    ({"slo": {"tpot_ms": -5}}, 400, "slo.tpot_ms must be a finite positive number", "slo.tpot_ms"),
    ({"slo": {"ttft_ms": 1e300}}, 400, "at most", "slo.ttft_ms"),
    ({"slo": {"tpot_ms": "fast"}}, 400, "slo must be", "slo"),
    ({"slo": {"speed": 1}}, 400, "slo must be", "slo"),
    ({"slo": 5}, 400, "slo must be", "slo"),
    ({"service_tier": "platinum"}, 400, "unknown service_tier", "service_tier"),
]
WRONG_CHAT: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "role", "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "content", "messages.0.content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
        "content",
        "messages",
    ),
    ({"tools": [{"type": "function"}]}, "tools is not supported", "tools"),
    ({"response_format": {"type": "json_schema"}}, "response_format is not supported", "response_format"),
    ({"chat_template": "{{ 1 }}"}, "chat_template is not supported", "chat_template"),
    ({"max_completion_tokens": 5}, "not both", "max_tokens"),
    ({"top_logprobs": 2}, "needs logprobs", "top_logprobs"),
    ({"logprobs": 2}, "boolean", "logprobs"),
]


def check(answer: httpx.Response, status: int, part: str, param: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    assert answer.elapsed.total_seconds() < 5
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert part in error["message"] and "\n" not in error["message"] and len(error["message"]) < 300
    if param is not None:
        assert error["param"] is not None and error["param"].startswith(param)


@pytest.mark.parametrize(("fields", "status", "part", "param"), WRONG_TEXT)
def test_wrong_completions(server: Server, fields: dict[str, Any], status: int, part: str, param: str | None) -> None:
    check(server.http.post("/v1/completions", json=TEXT | fields), status, part, param)


@pytest.mark.parametrize(("fields", "part", "param"), WRONG_CHAT)
def test_wrong_chats(server: Server, fields: dict[str, Any], part: str, param: str) -> None:
    check(server.http.post("/v1/chat/completions", json=CHAT | fields), 400, part, param)


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        (b"", 400, "not valid JSON"),
        (b"{", 400, "not valid JSON"),
        (b'{"prompt": NaN}', 400, "not valid JSON"),
        (b'{"prompt": "\\ud800"}', 400, "not valid JSON"),
        (b"[1]", 400, "JSON object"),
        (json.dumps(TEXT | {"x": DEEP}).encode(), 400, "nests deeper"),
        (b'{"prompt": "' + b"x" * (9 << 20) + b'"}', 413, "exceeds"),
    ],
)
def test_wrong_bodies(server: Server, body: bytes, status: int, part: str) -> None:
    headers = {"content-type": "application/json"}
    check(server.http.post("/v1/completions", content=body, headers=headers), status, part)


def test_wrong_paths_methods_types_and_headers(server: Server) -> None:
    http = server.http
    check(http.get("/v1/nonsense"), 404, "there is no /v1/nonsense")
    check(http.get("/v1/completions"), 405, "does not take GET")
    check(http.get("/v1/models/gpt-9"), 404, "does not exist")
    check(http.post("/v1/completions", content=json.dumps(TEXT)), 415, "application/json")
    check(http.post("/v1/completions", json=TEXT, headers={"x-slo-tpot-ms": "nan"}), 400, "x-slo-tpot-ms", "x-slo-tpot-ms")
    check(http.post("/tokenize", json={}), 400, "either prompt or messages")
    check(http.post("/detokenize", json={"tokens": [9999]}), 400, "between 0 and", "tokens")
    check(http.get("/health", headers={"x": "y" * 40_000}), 431, "headers exceed")


def test_every_route_but_the_probes_needs_the_key(server: Server) -> None:
    routes = server.http.get("/openapi.json").json()["paths"]
    assert PUBLIC == {"/health", "/ready"} < set(routes)
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/metrics", "/tokenize", "/detokenize"} <= set(routes)
    with httpx.Client(base_url=server.url, trust_env=False) as stranger:
        for key in (None, "x", "wrong", server.key + "x" if server.key else ""):
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            for path in ("/openapi.json", *routes):
                for method in routes.get(path, {"get": 0}):
                    status = stranger.request(method, path.replace("{name}", "tiny"), headers=headers).status_code
                    assert status == (200 if path in PUBLIC else 401), (path, method, key)
        answer = stranger.post("/v1/completions", json=TEXT)
        check(answer, 401, "API key")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_raw_rubbish_on_the_socket(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for rubbish in (
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"A" * 300_000,
    ):
        with socket.create_connection((host, int(port)), timeout=10) as wire:
            try:
                wire.sendall(rubbish)
                wire.recv(1000)
            except ConnectionError:
                pass
    assert server.http.get("/health").status_code == 200


field = st.sampled_from(
    [*TEXT, *CHAT, "temperature", "n", "stop", "slo", "logit_bias", "stream", "logprobs", "seed", "top_k", "tools"]
)
junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]),
    fields=st.dictionaries(field, junk),
)
def test_junk_never_breaks_the_server(server: Server, path: str, fields: dict[str, Any]) -> None:
    base = CHAT if "chat" in path else TEXT if "completions" in path else {}
    answer = server.http.post(path, json=base | {"max_tokens": 2} | fields)
    assert answer.status_code < 500, answer.text


def test_the_server_lived_through_all_that(server: Server) -> None:
    server.wait_idle()
    started = time.perf_counter()
    assert server.http.post("/v1/completions", json=TEXT).status_code == 200
    assert time.perf_counter() - started < 5
