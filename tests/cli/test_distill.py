"""A wrong start of `adaserve distill` ends in one clear line and status 2."""

from pathlib import Path

import pytest

from adaserve.cli.main import main
from tests.server.tiny import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("cli") / "tiny")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--write 100", "say when training ends: --steps or --minutes"),
        ("--steps 5", "there is nothing to train on; give --write, --prompts or --texts"),
        ("--steps 0 --write 100", "--steps must be at least 1"),
        ("--steps 5 --write 100 --layers 3", "--layers must be between 1 and the target's 2, got 3"),
        ("--steps 5 --write 100 --length 3", "--length must be at least 16, got 3"),
        ("--steps 5 --write 100 --greedy 2", "--greedy must be between 0 and 1"),
        ("--steps 5 --write 100 --init no/such-draft", "no/such-draft"),
        ("--steps 5 --write 100 --library no/such/folder", "--library: no folder no/such/folder"),
        ("--steps 5 --texts no/such.jsonl", "cannot read no/such.jsonl"),
        ("--steps 5 --texts {bad}", "bad.jsonl, line 2: must be an object with either text or tokens"),
        ("--steps 5 --prompts {bad}", "bad.jsonl, line 1: must be an object like"),
        ("--steps 5 --texts {far}", "line 1: tokens must be ids between 0 and"),
        ("--steps 5 --texts {empty}", "holds no text"),
    ],
)
def test_a_wrong_start(folder: Path, tmp_path: Path, options: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"bad": '{"text": "fine"}\n{"neither": 1}\n', "far": '{"tokens": [1, 99999]}\n', "empty": "\n"}
    for name, text in files.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in files}
    arguments = ["distill", str(folder), "--out", str(tmp_path / "out"), "--layers", "1", "--writer", "batch"]
    assert main([*arguments, *options.format(**paths).split()]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("adaserve distill: error: ") and part in error
