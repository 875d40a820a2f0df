"""The openai client, synchronous and asynchronous, streaming and not, against the running server."""

import asyncio
import json

import openai
import pytest

from tests.server.conftest import KEY
from tests.server.launch import Server

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something."}]
GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 16}
LONG = {"model": "tiny", "prompt": "def add(", "max_tokens": 40, "temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture
def asynchronous(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def test_chat_streamed_is_chat_whole(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=MESSAGES, **GREEDY)
    stream = list(
        client.chat.completions.create(messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY)
    )
    assert stream[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == whole.choices[0].message.content
    assert text
    finishes = [chunk.choices[0].finish_reason for chunk in stream if chunk.choices and chunk.choices[0].finish_reason]
    assert finishes == [whole.choices[0].finish_reason]
    usage = stream[-1].usage
    assert usage is not None and whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)


def test_completion_streamed_is_completion_whole(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt="def add(", **GREEDY)
    stream = list(client.completions.create(prompt="def add(", stream=True, **GREEDY))
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    assert stream[-1].model_extra is not None and stream[-1].model_extra["metrics"]["slo"]["class"] is None


def test_async_calls_run_side_by_side(asynchronous: openai.AsyncOpenAI) -> None:
    async def one(seed: int) -> str:
        stream = await asynchronous.chat.completions.create(
            messages=MESSAGES, model="tiny", max_tokens=16, seed=seed % 4, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one(seed) for seed in range(12)))

    texts = asyncio.run(all_of_them())
    assert texts[:4] == texts[4:8] == texts[8:], "the same seed gives the same text, whatever runs beside it"
    assert len(set(texts[:4])) > 1


def test_async_whole(asynchronous: openai.AsyncOpenAI) -> None:
    async def call() -> openai.types.Completion:
        return await asynchronous.completions.create(prompt=[[7, 8, 9]], n=2, **GREEDY)

    answer = asyncio.run(call())
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text == answer.choices[1].text


def test_prompts_come_as_text_or_tokens(client: openai.OpenAI, server: Server) -> None:
    ids = server.http.post("/tokenize", json={"prompt": "def add("}).json()["tokens"]
    prompts: list[object] = ["def add(", ids, ["def add(", "lazy dog"], [ids, ids[:2]]]
    answers = [client.completions.create(prompt=prompt, **GREEDY) for prompt in prompts]  # type: ignore[arg-type]
    assert len({answer.choices[0].text for answer in answers}) == 1
    assert [len(answer.choices) for answer in answers] == [1, 1, 2, 2]
    assert answers[2].usage is not None and answers[2].usage.prompt_tokens > len(ids)


def test_choices_differ_and_repeat_with_their_seed(client: openai.OpenAI) -> None:
    def call() -> list[str]:
        answer = client.completions.create(model="tiny", prompt="fox", n=4, seed=7, max_tokens=12)
        return [choice.text for choice in answer.choices]

    first = call()
    assert len(set(first)) > 1
    assert call() == first


def test_completion_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt="def add(", logprobs=3, **GREEDY).choices[0]
    found = answer.logprobs
    assert found is not None and found.tokens and found.token_logprobs and found.top_logprobs and found.text_offset
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
    for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert token in top and logprob <= 0
        assert logprob == max(top.values()), "greedy takes the likeliest"
    streamed = client.completions.create(prompt="def add(", logprobs=3, stream=True, **GREEDY)
    tokens = [token for chunk in streamed if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.tokens or []]
    assert tokens == found.tokens


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=2, **GREEDY)
    content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None and answer.usage is not None and len(content) == answer.usage.completion_tokens
    assert all(len(item.top_logprobs) == 2 and item.top_logprobs[0].logprob >= item.top_logprobs[1].logprob for item in content)
    plain = client.chat.completions.create(messages=MESSAGES, logprobs=True, **GREEDY).choices[0].logprobs
    assert plain is not None and plain.content is not None and all(item.top_logprobs == [] for item in plain.content)


def test_stop_strings_cut_the_text_wherever_tokens_end(client: openai.OpenAI, server: Server) -> None:
    whole = client.completions.create(**LONG).choices[0].text
    for start in (4, len(whole) // 2):
        stop = whole[start : start + 3]
        expected = whole[: whole.index(stop)]
        answer = client.completions.create(stop=[stop, "never to be seen"], **LONG)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (expected, "stop")
        streamed = list(client.completions.create(stop=stop, stream=True, **LONG))
        assert "".join(chunk.choices[0].text for chunk in streamed) == expected
        metrics = answer.model_extra["metrics"]  # type: ignore[index]
        assert answer.usage is not None and metrics["slo"]["tpot_ms"] is not None
        assert answer.usage.completion_tokens < 40
    server.wait_idle()


def test_stop_strings_can_be_included_and_wait_for_min_tokens(client: openai.OpenAI) -> None:
    whole = client.completions.create(**LONG).choices[0].text
    stop = whole[6:8]
    body = {"ignore_eos": True, "include_stop_str_in_output": True}
    cut = client.completions.create(**(LONG | {"extra_body": body}), stop=stop).choices[0].text
    assert cut == whole[: whole.index(stop) + len(stop)]
    late = client.completions.create(**(LONG | {"extra_body": {"ignore_eos": True, "min_tokens": 30}}), stop=stop)
    assert late.usage is not None and late.usage.completion_tokens >= 30


def test_stop_ids_and_bias(client: openai.OpenAI, server: Server) -> None:
    ids = server.http.post("/tokenize", json={"prompt": "lazy"}).json()["tokens"]
    forced = client.completions.create(
        model="tiny", prompt="x", max_tokens=5, logit_bias={str(ids[0]): 100}, temperature=0, extra_body={"ignore_eos": True}
    )
    text = server.http.post("/detokenize", json={"tokens": [ids[0]] * 5}).json()["prompt"]
    assert forced.choices[0].text == text
    stopped = client.completions.create(
        model="tiny",
        prompt="x",
        max_tokens=5,
        logit_bias={str(ids[0]): 100},
        temperature=0,
        extra_body={"stop_token_ids": [ids[0]]},
    )
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("", "stop")


def test_slo_report(client: openai.OpenAI, server: Server) -> None:
    def call(**options: object) -> dict[str, object]:
        answer = client.completions.create(prompt="fox", model="tiny", max_tokens=8, **options)  # type: ignore[call-overload]
        return answer.model_extra["metrics"]["slo"]

    assert call(extra_body={"slo": "easy"})["met"] is True
    missed = call(extra_body={"slo": "hard"})
    assert (missed["class"], missed["met"]) == ("hard", False), "a target that cannot be met is reported"
    assert call(extra_body={"slo": {"tpot_ms": 0.001}}, extra_headers={"x-slo-tpot-ms": "60000"})["met"] is False
    by_header = call(extra_headers={"x-slo-tpot-ms": "70000", "x-llm-d-slo-ttft-ms": "80000"})
    assert by_header["targets"] == {"tpot_ms": 70000, "ttft_ms": 80000}
    assert call(extra_body={"service_tier": "priority"})["class"] == "easy"
    baseline = server.http.get("/v1/models").json()["data"][0]["baseline_ms"]
    assert call(extra_body={"slo": "twice"})["targets"]["tpot_ms"] == pytest.approx(2 * baseline)  # type: ignore[index]


def test_speculation_report(client: openai.OpenAI) -> None:
    answer = client.completions.create(**(LONG | {"max_tokens": 100}))
    report = answer.model_extra["metrics"]["speculative_decoding"]  # type: ignore[index]
    steps, histogram = report["num_spec_steps"], report["acceptance_histogram"]
    assert sum(histogram) == steps
    assert sum(length * count for length, count in enumerate(histogram)) == report["num_accepted_draft_tokens"]
    assert steps + report["num_accepted_draft_tokens"] + 1 == 100, "the first token, then 1 + accepted tokens a step"
    assert report["num_accepted_draft_tokens"] > 0, "this text repeats itself, so prompt look-up must find something"


def test_sampling_fields_are_heard(server: Server) -> None:
    def text(**fields: object) -> str:
        body = {"model": "tiny", "prompt": "dog", "max_tokens": 8, "seed": 3} | fields
        return str(server.http.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]["text"])

    greedy = text(temperature=0)
    assert text(top_k=1) == greedy == text(min_p=1.0) == text(top_p=1e-6)
    assert text() != greedy
    assert text(temperature=0, repetition_penalty=5.0, presence_penalty=2.0, frequency_penalty=2.0, max_tokens=30) != text(
        temperature=0, max_tokens=30
    )
    assert text(top_k=-1) == text()


def test_tokens_there_and_back(server: Server) -> None:
    text = "def add(🙂):\n  é"
    found = server.http.post("/tokenize", json={"prompt": text}).json()
    assert found["count"] == len(found["tokens"]) and found["max_model_len"] == 512
    assert server.http.post("/detokenize", json={"tokens": found["tokens"]}).json()["prompt"] == text
    chat = server.http.post("/tokenize", json={"messages": MESSAGES}).json()["tokens"]
    assert server.http.post("/detokenize", json={"tokens": chat}).json()["prompt"].startswith("<|system|>Be brief.<|end|>")


def test_models_and_document(client: openai.OpenAI, server: Server) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "alias"]
    assert client.models.retrieve("alias").owned_by == "adaserve"
    document = server.http.get("/openapi.json").json()
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].removeprefix("#/components/schemas/") in document["components"]["schemas"]
    text = json.dumps(document)
    assert "SLOBody" in text and "MessageBody" in text
