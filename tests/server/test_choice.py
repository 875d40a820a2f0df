"""A choice's answer depends on its tokens alone, not on how many a step brought."""

import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaserve.metrics import RequestResult
from adaserve.models.registry import resolve
from adaserve.models.tokenizer import Tokenizer, load_tokenizer
from adaserve.request import FinishReason, Request, SamplingParams, Targets
from adaserve.server.choice import Choice, metrics_of
from adaserve.server.messages import TokenNews


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return load_tokenizer(resolve(str(tiny_model)))


def follow(choice: Choice, tokens: list[int], cuts: list[int], finish: FinishReason) -> tuple[str, int, str | None]:
    """Feed tokens in steps of the given sizes; as the engine does, go on after a stop until the cancellation arrives."""
    edges = [0, *sorted({cut % (len(tokens) + 1) for cut in cuts}), len(tokens)]
    text = ""
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        last = end == len(tokens)
        result = None
        if last:
            result = RequestResult("r", None, Targets(1.0), 0.0, 1.0, 9.0, 9.0, 1, len(tokens), finish, 0.02)
        news = TokenNews(
            "r", tuple(tokens[start:end]), verified=start > 0, drafted=3, finish=finish if last else None, result=result
        )
        text += choice.push(float(number + 1), news).text
        if last:
            break
    return text, choice.output_tokens, choice.finish


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 330), min_size=1, max_size=30),
    st.lists(st.integers(0, 30), max_size=10),
    st.lists(st.text("abcdefgh ,.\n", min_size=1, max_size=3), max_size=3),
    st.integers(0, 5),
    st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]),
    st.booleans(),
)
def test_steps_do_not_show(
    tokenizer: Tokenizer, tokens: list[int], cuts: list[int], stops: list[str], floor: int, finish: FinishReason, include: bool
) -> None:
    sampling = SamplingParams(max_tokens=99, stop=tuple(stops), min_tokens=floor)
    request = Request("r", (1,), sampling, Targets(1.0), 0, 0.0)
    one_by_one = follow(Choice(request, tokenizer, include), tokens, list(range(30)), finish)
    in_steps = follow(Choice(request, tokenizer, include), tokens, cuts, finish)
    assert in_steps == one_by_one
    text, kept, reason = in_steps
    if not stops:
        shown = tokens[:-1] if finish is FinishReason.STOP and not include else tokens
        assert (text, kept, reason) == (tokenizer.decode(shown), len(tokens), finish.value)
    elif kept < len(tokens):
        assert reason == "stop" and any(stop in tokenizer.decode(tokens[:kept]) for stop in stops)


def test_a_stopped_choice_is_accounted_to_where_it_stopped(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("fox jumps over the lazy dog")
    request = Request("r", (1,), SamplingParams(max_tokens=99, stop=("lazy",)), Targets(tpot=0.5), 0, 0.0)
    choice = Choice(request, tokenizer)
    last = max(place for place in range(len(tokens)) if "lazy" not in tokenizer.decode(tokens[:place])) + 1
    choice.push(1.0, TokenNews("r", tuple(tokens[:1])))
    choice.push(3.0, TokenNews("r", tuple(tokens[1:]), verified=True, drafted=8))
    assert choice.stopped and choice.finish is None and choice.output_tokens == last
    late = RequestResult("r", None, Targets(tpot=0.5), 0.0, 1.0, 99.0, 99.0, 1, 60, FinishReason.CANCELLED, 0.02)
    choice.push(99.0, TokenNews("r", (1, 2), finish=FinishReason.CANCELLED, result=late))
    assert choice.finish == "stop" and choice.result is not None
    assert (choice.result.output_tokens, choice.result.last_token_at) == (last, 3.0)
    report = metrics_of([choice])
    assert report["slo"]["tpot_ms"] == pytest.approx(2000 / (last - 1), abs=1e-3)  # type: ignore[index]
    assert report["slo"]["met"] is (2 / (last - 1) <= 0.5)  # type: ignore[index]
    assert report["speculative_decoding"]["num_draft_tokens"] == 8  # type: ignore[index]
