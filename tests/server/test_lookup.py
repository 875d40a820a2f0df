"""Look-up over earlier requests, over HTTP: who shows the same key profits, and nobody else."""

from tests.server.launch import Server


def test_requests_of_one_key_profit_from_each_other_and_those_of_others_do_not(options: list[str]) -> None:
    server = Server([*options, "--lookup", "tenant", "--policy", "spec:4", "--api-key", "one", "--api-key", "two"], "one")
    body = {"model": "tiny", "prompt": "The quick (brown) fox", "max_tokens": 60, "temperature": 1, "seed": 7, "ignore_eos": True}

    def steps(key: str) -> tuple[str, int]:
        answer = server.http.post("/v1/completions", json=body, headers={"authorization": f"Bearer {key}"})
        found = answer.raise_for_status().json()
        return found["choices"][0]["text"], found["metrics"]["speculative_decoding"]["num_spec_steps"]

    try:
        server.wait_until_ready()
        (text, first), (same, other), (once_more, again) = steps("one"), steps("two"), steps("one")
    finally:
        assert server.stop() == 0
    assert text == same == once_more
    assert other == first > 1.5 * again
