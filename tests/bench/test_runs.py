"""Runs survive the way to the file and back, and crashes of whoever writes it."""

import json
from pathlib import Path

import pytest

from adaserve.bench.runs import Point, Run, RunStore, read_runs
from adaserve.errors import InvalidConfig
from tests.bench.made import BASELINE, run

CONDITIONS = {"trace": "t", "sizes": (1, 2)}
HERE = Point(speed=1.5, urgent=0.4, slo_scale=0.8, seed=3)


def store(folder: Path, **changes: object) -> RunStore:
    return RunStore(folder, CONDITIONS | changes, BASELINE)


def test_a_run_survives_the_way_to_json_and_back() -> None:
    for original in (run("adaserve", HERE), run("spec:3", complete=False)):
        back = Run.from_json(json.loads(json.dumps(original.to_json())))
        assert back == original
        assert back.report == original.report


def test_finished_runs_are_found_again(tmp_path: Path) -> None:
    kept = run("adaserve", HERE)
    store(tmp_path).add(kept)
    assert store(tmp_path).find("adaserve", HERE) == kept
    assert store(tmp_path).find("adaserve", Point()) is None
    assert store(tmp_path).find("continuous", HERE) is None


def test_other_conditions_find_nothing_and_keep_what_there_is(tmp_path: Path) -> None:
    store(tmp_path).add(run("adaserve"))
    other = store(tmp_path, sizes=3)
    assert other.runs == []
    other.add(run("adaserve", tpot=0.5))
    assert store(tmp_path).runs == [run("adaserve")]
    assert read_runs(tmp_path) == [run("adaserve", tpot=0.5)]  # the latest of a policy and a point


def test_what_was_cut_short_is_kept_and_run_again(tmp_path: Path) -> None:
    store(tmp_path).add(run("adaserve", complete=False))
    again = store(tmp_path)
    assert again.runs == [run("adaserve", complete=False)]
    assert again.find("adaserve", Point()) is None
    again.add(run("adaserve"))
    assert store(tmp_path).runs == [run("adaserve")]


def test_the_baseline_is_that_of_the_runs_found(tmp_path: Path) -> None:
    assert store(tmp_path).baseline == BASELINE
    RunStore(tmp_path, CONDITIONS, 0.123).add(run("adaserve"))
    assert store(tmp_path).baseline == 0.123
    assert store(tmp_path, sizes=3).baseline == BASELINE


@pytest.mark.parametrize("cut", [1, 40, 1000])
def test_a_line_that_a_crash_cut_off_costs_that_run_alone(tmp_path: Path, cut: int) -> None:
    first = store(tmp_path)
    first.add(run("adaserve"))
    first.add(run("continuous"))
    path = tmp_path / RunStore.FILE
    path.write_bytes(path.read_bytes()[:-cut])
    second = store(tmp_path)
    assert second.find("adaserve", Point()) == run("adaserve")
    second.add(run("spec:3"))
    assert {kept.policy for kept in store(tmp_path).runs} >= {"adaserve", "spec:3"}


def test_lines_of_another_version_are_skipped(tmp_path: Path) -> None:
    (tmp_path / RunStore.FILE).write_text('{"run": {"columns": ["old"]}}\n[]\nnonsense\n')
    assert store(tmp_path).runs == []


def test_without_a_folder_runs_are_kept_in_memory() -> None:
    kept = RunStore(None, CONDITIONS, BASELINE)
    kept.add(run("adaserve"))
    assert kept.find("adaserve", Point()) == run("adaserve")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / RunStore.FILE).mkdir()
    with pytest.raises(InvalidConfig, match="cannot write"):
        RunStore(tmp_path / "nowhere", CONDITIONS, BASELINE).add(run("adaserve"))


def test_no_runs_to_show(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="there are no runs in"):
        read_runs(tmp_path)
