import io
import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.bench.demo_client import Answer
from adaserve.bench.demo_report import DemoFigures, DemoReport, DemoRun, show
from adaserve.bench.demo_terminal import Terminal, Wrap, bar
from adaserve.metrics import RequestResult
from adaserve.request import SLO, FinishReason, Targets

BASELINE = 0.01
CLASSES = {"coding": SLO(tpot_multiple=1.2), "chat": SLO(tpot_multiple=1.8)}


def answer(name: str, kind: str, tpot: float, arrived: float = 0.0, text: str = "text", tokens: int = 11) -> Answer:
    first = arrived + 0.1
    last = first + tpot * (tokens - 1)
    targets = CLASSES[kind].resolve(BASELINE)
    result = RequestResult(
        name, kind, targets, arrived, first, last, last, 5, tokens, FinishReason.LENGTH, BASELINE, longest_gap=tpot
    )
    return Answer(result, text, result.attained)


def run(policy: str, *answers: Answer, number: int = 0) -> DemoRun:
    return DemoRun(policy, number, answers, 0.0, 10.0)


def report(*runs: DemoRun) -> DemoReport:
    return DemoReport(BASELINE, 1.0, CLASSES, runs)


def test_figures_of_a_class_and_of_all() -> None:
    one = run("p", answer("0", "coding", 0.011), answer("1", "coding", 0.02), answer("2", "chat", 0.017))
    coding, everything = DemoFigures.of(one, "coding"), DemoFigures.of(one, None)
    assert (coding.requests, coding.attainment) == (2, 0.5)
    assert coding.tpot_p50_ms == pytest.approx(15.5)
    assert everything.attainment == pytest.approx(2 / 3)
    # 2 x 11 tokens met their target, between the first arrival and the last token of all, 0.1 + 10 x 0.02 s later.
    assert everything.goodput_tokens_per_s == pytest.approx(22 / 0.3)
    assert coding.goodput_tokens_per_s == pytest.approx(11 / 0.3)


def test_refused_requests_arrived_and_missed() -> None:
    lost = Answer(
        RequestResult("1", "coding", Targets(0.012), 0.0, None, None, 0.1, 5, 0, None, BASELINE), "", None, refused=True
    )
    figures = DemoFigures.of(run("p", answer("0", "coding", 0.011), lost), "coding")
    assert (figures.requests, figures.attainment) == (2, 0.5)


@given(st.lists(st.floats(0.001, 0.1), min_size=1, max_size=5))
def test_medians_over_runs(tpots: list[float]) -> None:
    runs = [run("p", answer("0", "coding", tpot), number=number) for number, tpot in enumerate(tpots)]
    middle = report(*runs).figures("p", "coding").tpot_p50_ms
    assert middle is not None
    assert sum(tpot * 1e3 <= middle + 1e-6 for tpot in tpots) * 2 >= len(tpots)
    assert sum(tpot * 1e3 >= middle - 1e-6 for tpot in tpots) * 2 >= len(tpots)


def test_mean_running_counts_only_the_time_of_sending() -> None:
    long = answer("0", "coding", 1.0, arrived=5.0, tokens=101)  # from 5 s to beyond the 10 s of the run
    assert run("p", long).mean_running == pytest.approx(0.5)


def test_texts_are_compared_within_a_round() -> None:
    first, second = answer("0", "coding", 0.01, text="same"), answer("1", "coding", 0.01, text="one")
    other = replace(second, text="two")
    rounds = report(run("p", first, second), run("q", first, other), run("p", other, number=1))
    assert rounds.same_text() == (1, 2)


def test_a_policy_without_answers_can_be_shown() -> None:
    out = io.StringIO()
    show(report(run("p")), Terminal(out))
    assert "p" in out.getvalue() and "\x1b" not in out.getvalue()


def test_the_table_names_targets_policies_and_errors() -> None:
    failed = replace(answer("1", "chat", 0.01), error="engine died")
    out = io.StringIO()
    show(
        report(run("continuous", answer("0", "coding", 0.02)), run("adaserve", answer("0", "coding", 0.01), failed)),
        Terminal(out),
    )
    text = out.getvalue()
    for words in ("target 12.0 ms per token (1.2 x baseline)", "continuous", "adaserve", "100.0%", "0.0%", "engine died"):
        assert words in text


def test_json_holds_what_the_table_shows() -> None:
    data = report(run("p", answer("0", "coding", 0.011))).to_json()
    assert data["policies"]["p"]["per_class"]["coding"]["attainment"] == 1.0
    assert data["targets_ms"] == pytest.approx({"coding": 12.0, "chat": 18.0})


@given(text=st.text("ab \n", max_size=200), cuts=st.lists(st.integers(0, 200), max_size=10))
def test_wrapping_does_not_depend_on_the_pieces(text: str, cuts: list[int]) -> None:
    whole, parts = Wrap(10, "  "), Wrap(10, "  ")
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = "".join(parts.push(text[first:last]) for first, last in itertools.pairwise(edges)) + parts.rest()
    assert whole.push(text) + whole.rest() == pieces
    assert pieces.split() == text.split()


@given(st.text("a \n", max_size=200))
def test_wrapped_lines_fit(text: str) -> None:
    wrap = Wrap(12, "  ")
    longest = max((len(word) for word in text.split()), default=0)
    assert all(len(line.rstrip()) <= 2 + max(12, longest) for line in (wrap.push(text) + wrap.rest()).split("\n"))


@given(st.floats(allow_nan=False))
def test_a_bar_has_one_length(done: float) -> None:
    assert len(bar(done, 24)) == 24
