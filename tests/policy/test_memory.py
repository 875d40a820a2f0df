"""What was learned survives a restart, and a damaged file does no harm."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from adaserve.policy.memory import load_memory, save_memory
from adaserve.policy.plus.calibration import Calibration
from adaserve.tree import Source
from tests.policy.test_calibration import COLD, LEARNING, believed, star, steps


def taught() -> Calibration:
    """One that learned that nothing of what look-up says is true."""
    calibration = Calibration(LEARNING, coupled=True)
    for drafted in steps(np.random.default_rng(0), 96, lambda p: 0.1 + 0 * p, Source.NGRAM):
        calibration.learn(drafted, COLD)
    return calibration


def test_a_restart_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "pair.json"
    before, after, fresh = taught(), Calibration(LEARNING, coupled=True), Calibration(LEARNING, coupled=True)
    save_memory(before, path)
    assert load_memory(after, path, pytest.fail)
    said = star([0.3, 0.6])
    more = steps(np.random.default_rng(1), 64, lambda p: 0.5 + 0 * p, Source.NGRAM)
    for drafted in more:
        before.learn(drafted, COLD)
        after.learn(drafted, COLD)
        fresh.learn(drafted, COLD)
    assert torch.equal(before.table(), after.table())
    assert not torch.equal(after.table(), fresh.table())
    assert torch.equal(believed(before, said), believed(after, said))
    assert list(path.parent.iterdir()) == [path], "no part of an unfinished file is left"


def test_without_a_file_nothing_is_recalled(tmp_path: Path) -> None:
    calibration = Calibration(LEARNING, coupled=True)
    assert not load_memory(calibration, tmp_path / "none.json", pytest.fail)
    assert torch.equal(calibration.table(), Calibration(LEARNING, coupled=True).table())


def broken(found: dict[str, object], name: str, value: object) -> str:
    return json.dumps(found | {name: value})


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "list", "edges", "shape", "negative", "more kept than tried", "nan", "endless", "text"]
)
def test_a_damaged_file_is_ignored_with_one_warning(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "pair.json"
    save_memory(taught(), path)
    text = path.read_text()
    found = json.loads(text)
    tried = found["tried"]
    texts = {
        "cut": text[: len(text) // 2],
        "empty": "",
        "list": "[1, 2]",
        "edges": broken(found, "edges", [0.5]),
        "shape": broken(found, "tried", tried[1:]),
        "negative": broken(found, "tried", [[[-1.0] * len(row) for row in rows] for rows in tried]),
        "more kept than tried": broken(found, "kept", [[[x + 1 for x in row] for row in rows] for rows in tried]),
        "nan": broken(found, "kept", [[[float("nan")] * len(row) for row in rows] for rows in tried]),
        "endless": json.dumps(
            found | {name: [[[float("inf")] * len(row) for row in rows] for rows in tried] for name in ("tried", "kept")}
        ),
        "text": broken(found, "kept", "much"),
    }
    path.write_text(texts[damage])
    calibration, warnings = Calibration(LEARNING, coupled=True), list[str]()
    assert not load_memory(calibration, path, warnings.append)
    assert len(warnings) == 1 and str(path) in warnings[0]
    assert torch.equal(calibration.table(), Calibration(LEARNING, coupled=True).table())


def test_what_was_counted_before_temperatures_were_told_apart_is_learned_anew(tmp_path: Path) -> None:
    path = tmp_path / "pair.json"
    save_memory(taught(), path)
    found = json.loads(path.read_text())
    del found["bands"]
    path.write_text(json.dumps(found | {"version": 2, "tried": found["tried"][0], "kept": found["kept"][0]}))
    calibration, warnings = Calibration(LEARNING, coupled=True), list[str]()
    assert not load_memory(calibration, path, warnings.append)
    assert len(warnings) == 1 and "before temperatures were told apart" in warnings[0]
    assert torch.equal(calibration.table(), Calibration(LEARNING, coupled=True).table())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pair.json"
    save_memory(taught(), path)
    before = path.read_text()

    def refuse(source: str, target: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no space"):
        save_memory(Calibration(LEARNING, coupled=True), path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
