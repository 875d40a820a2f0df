"""Commands that load models end the processes of other ranks before they end, also when they fail."""

import argparse
from pathlib import Path
from types import ModuleType

import pytest

import adaserve.build
import adaserve.cli.bench
import adaserve.cli.profile
import adaserve.cli.record
import adaserve.cli.tune
from adaserve.cli.checks import check_writable
from adaserve.errors import InvalidConfig
from adaserve.models.registry import KNOWN


class BrokenParts:
    """Stands for loaded models of which nothing works but the end."""

    def __init__(self) -> None:
        self.closed = 0

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(f"broken: {name}")

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("command", "module", "arguments"),
    [
        (adaserve.cli.profile, adaserve.cli.profile, []),
        (adaserve.cli.tune, adaserve.cli.tune, ["--out", "tuning.json"]),
        (adaserve.cli.record, adaserve.cli.record, []),
        (adaserve.cli.bench, adaserve.build, ["generated", "--duration", "1"]),
    ],
    ids=["profile", "tune", "record", "bench"],
)
def test_a_command_that_fails_closes_what_it_loaded(
    command: ModuleType, module: ModuleType, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = BrokenParts()
    monkeypatch.setattr(module, "load_parts", lambda *given, **named: parts)
    monkeypatch.setattr(adaserve.cli.bench, "check_engine", lambda config: None)
    monkeypatch.setenv("ADASERVE_CACHE", str(tmp_path))
    (tmp_path / KNOWN["demo"].file).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    command.configure(parser)
    with pytest.raises(RuntimeError, match="broken"):
        command.run(parser.parse_args(arguments))
    assert parts.closed == 1


@pytest.mark.parametrize(
    "command", [adaserve.cli.profile, adaserve.cli.tune, adaserve.cli.record], ids=["profile", "tune", "record"]
)
def test_a_place_that_cannot_be_written_shows_before_anything_is_loaded(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load_parts", None)
    parser = argparse.ArgumentParser()
    command.configure(parser)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidConfig, match="cannot write"):
        command.run(parser.parse_args(["--out", str(tmp_path / "file" / "out.json")]))


def test_looking_whether_a_file_can_be_written_changes_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "folder" / "new")
    assert not (tmp_path / "folder" / "new").exists()
    (tmp_path / "old").write_text("kept")
    check_writable(tmp_path / "old")
    assert (tmp_path / "old").read_text() == "kept"
