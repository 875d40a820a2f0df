"""Both writers play a script alike, and as it says."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaserve.distill.batch_writer import BatchWriter, draw
from adaserve.distill.networks import load_network
from adaserve.distill.rows import Role, Rows, Script, Turn
from adaserve.distill.writers import EngineWriter
from adaserve.llm import LLM
from adaserve.models.load import open_model
from adaserve.models.registry import resolve
from tests.server.tiny import write_model, write_profile

CPU = torch.device("cpu")
LENGTH = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("writers") / "tiny")


@pytest.fixture(scope="module")
def batch(folder: Path) -> BatchWriter:
    config, weights = open_model(resolve(str(folder)))
    target = load_network(config, weights, dtype=torch.float32, device=CPU)
    return BatchWriter(target, tokens=3 * LENGTH, seed=0, progress=lambda line: None)


@pytest.fixture(scope="module")
def engine(folder: Path) -> EngineWriter:
    profile = str(write_profile(folder / "profile.json"))
    return EngineWriter(LLM(str(folder), dtype="float32", profile=profile, policy="continuous"), seed=0)


tokens = st.lists(st.integers(5, 200), max_size=6).map(tuple)
turns = st.builds(
    Turn,
    given=tokens,
    most=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 0.9]),
    ends=st.frozensets(st.integers(0, 250), max_size=40),
    answer=st.booleans(),
    least=st.sampled_from([0, 0, 3]),
)
first = st.builds(
    Turn,
    given=tokens.filter(bool),
    most=st.integers(1, 9),
    temperature=st.just(0.0),
    ends=st.just(frozenset({0})),
    answer=st.booleans(),
)
scripts = st.lists(st.builds(lambda a, b: Script("kind", (a, *b)), first, st.lists(turns, max_size=4)), min_size=1, max_size=7)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scripts=scripts)
def test_rows_are_what_their_scripts_say(batch: BatchWriter, scripts: list[Script]) -> None:
    rows = batch.write(scripts, LENGTH)
    assert len(rows) == len(scripts)
    for row, script in enumerate(scripts):
        size = int((rows.role[row] != Role.PADDING).sum())
        token, role = rows.token[row, :size].tolist(), rows.role[row, :size].tolist()
        assert rows.token[row, size:].eq(0).all() and rows.role[row, size:].eq(Role.PADDING).all()
        at = 0
        for turn in script.turns:
            given, at = token[at : at + len(turn.given)], at + len(turn.given)
            assert tuple(given) == turn.given[: len(given)]
            drawn = token[at : at + turn.most]
            stop = next((i + 1 for i, t in enumerate(drawn) if t in turn.ends), len(drawn))
            drawn, at = drawn[:stop], at + stop
            assert set(role[at - stop : at]) <= {Role.ANSWER if turn.answer else Role.GIVEN}
            assert not any(t in turn.ends for t in drawn[: turn.least])
        assert size == min(at, LENGTH)


def test_the_engine_writes_the_same(batch: BatchWriter, engine: EngineWriter) -> None:
    ends = frozenset({0, 17, 40, 90})
    question = [Turn((7, 8, 9 + i), 10, 0.0, ends, False, least=4) for i in range(4)]
    answer = [Turn((30 + i,), 9, 0.0, ends, True) for i in range(4)]
    rest = Turn((), 30, 0.0, frozenset(), True)
    made = [Script("a", (asked, answered, rest)) for asked, answered in zip(question, answer, strict=True)]
    ours, twin = batch.write(made, LENGTH), engine.write(made, LENGTH)
    assert torch.equal(ours.token, twin.token) and torch.equal(ours.role, twin.role)
    assert (ours.role == Role.ANSWER).sum() > 20


def test_a_script_must_begin_with_something(batch: BatchWriter) -> None:
    with pytest.raises(ValueError, match="must begin with a given token"):
        batch.write([Script("a", (Turn((), 5, 0.0, frozenset(), True),))], LENGTH)


def test_draws_follow_the_temperature() -> None:
    """A thousand draws at temperature 2 have the tempered distribution; at 0 the likeliest token comes."""
    scores = torch.tensor([1.0, 3.0, 0.0]).repeat(4000, 1)
    temperature = torch.tensor([2.0, 0.0]).repeat(2000)
    drawn = draw(scores.clone(), temperature, torch.Generator().manual_seed(0))
    assert (drawn[1::2] == 1).all()
    share = drawn[::2].bincount(minlength=3) / 2000
    torch.testing.assert_close(share, (scores[0] / 2).softmax(-1), atol=0.04, rtol=0)


def test_rows_join_and_part() -> None:
    parts = [Rows.of([("a", [1, 2, 3], [1, 2, 2])], 5), Rows.of([("b", [4], [2]), ("c", [5, 6], [1, 2])], 2)]
    whole = Rows.join(parts)
    assert whole.token.tolist() == [[1, 2, 3, 0, 0], [4, 0, 0, 0, 0], [5, 6, 0, 0, 0]] and whole.tokens == 6
    assert whole.take([2, 0]).kind == ("c", "a") and whole.take([2, 0]).token[0, :2].tolist() == [5, 6]
