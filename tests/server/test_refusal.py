"""Early refusal: a target that cannot be met is told at once, with the reason, and counts as missed."""

from collections.abc import Iterator

import pytest

from tests.server.launch import Server


@pytest.fixture(scope="module")
def refusing(options: list[str]) -> Iterator[Server]:
    """A server that refuses who is hopeless."""
    running = Server([*options, "--policy", "adaserve+:with-refusing"])
    try:
        yield running.wait_until_ready()
    finally:
        running.stop()


def test_a_hopeless_target_is_refused_with_the_reason(refusing: Server) -> None:
    body = {"model": "tiny", "prompt": "fox", "max_tokens": 4, "ignore_eos": True}
    answer = refusing.http.post("/v1/completions", json=body | {"slo": {"tpot_ms": 0.001}})
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("slo_out_of_reach", "slo")
    assert "TPOT 0.001 ms" in error["message"]
    assert refusing.http.post("/v1/completions", json=body | {"slo": {"tpot_ms": 60000}}).status_code == 200
    assert refusing.http.post("/v1/completions", json=body).status_code == 200
    figures = refusing.http.get("/metrics").text
    assert 'outcome="missed"' in figures and 'outcome="attained"' in figures
