"""`adaserve simulate` as a user types it: the same figures every time, tuned constants, and one line for what is wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaserve.bench.runs import read_runs
from adaserve.cli.main import main
from adaserve.executor.shipped import profile_named
from adaserve.simulate import constants_for
from tests.recordings import random_recording

SHORT = ["simulate", "generated", "--duration", "6", "--rate", "4", "--profile", "a100x4-70b", "--acceptance", "smollm2-noise-t0"]


def simulated(capsys: pytest.CaptureFixture[str], out: Path, *more: str) -> dict[str, Any]:
    assert main([*SHORT, "--out", str(out), *more]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return report


def test_the_same_command_brings_the_same_figures_each_policy_with_its_own_constants(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = simulated(capsys, tmp_path / "a", "--policy", "adaserve", "sarathi")
    assert simulated(capsys, tmp_path / "b", "--policy", "adaserve", "sarathi")["runs"] == first["runs"]
    assert [run["policy"] for run in first["runs"]] == ["adaserve", "sarathi"]
    assert all(run["requests"] == run["completed"] > 0 for run in first["runs"])
    made = first["config"]["policies"]
    assert "verify_rows=160" in made["adaserve"] and "token_budget=1024" in made["sarathi"]


def test_what_a_policy_is_called_in_a_store_is_the_same_in_every_process(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = simulated(capsys, tmp_path, "--policy", "adaserve", "adaserve+", "fastserve")["config"]["policies"]
    assert len(made) == 3 and not any(" at 0x" in words for words in made.values())


def test_what_was_run_with_other_constants_is_run_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = [
        simulated(capsys, tmp_path, "--policy", "adaserve+", "--chunk-rows", rows)["runs"][0]["ttft_p99_ms"]
        for rows in ("8", "256")
    ]
    assert found[0] > found[1]


def test_two_processes_bring_the_report_of_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    what = ["--policy", "spec:4", "adaserve", "--sweep", "rate=0.5,1"]
    one = simulated(capsys, tmp_path / "one", *what)
    two = simulated(capsys, tmp_path / "two", *what, "--jobs", "2")
    assert one["runs"] == two["runs"] and len(one["runs"]) == 4
    kept = [{(run.policy, run.point): run.results for run in read_runs(tmp_path / name)} for name in ("one", "two")]
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--profile", "b200"], "a100x4-70b, demo-cpu-measured, h200-32b"),
        (["--acceptance", "guess"], "smollm2-noise-t0"),
        (["--acceptance", "synthetic:high"], "synthetic:0.7"),
        (["--policy", "best"], "choose one of adaserve"),
        (["--swap-acceptance", "coding=poetry"], "coding=chat"),
        (["--sweep", "load=1,2"], "rate=0.8"),
        (["--jobs", "0"], "at least 1"),
        (["--tuning", "fast=file.json"], "a policy that does not run"),
        (["--profile", "pyproject.toml"], "pyproject.toml"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, wrong: list[str], says: str
) -> None:
    assert main([*SHORT, "--out", str(tmp_path / "out"), *wrong]) != 0
    error = capsys.readouterr().err
    assert says in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_recording_of_coupled_drafts_is_for_policies_that_couple(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    coupled = replace(random_recording(np.random.default_rng(0)), coupled=True)
    coupled.save(tmp_path / "coupled.npz")
    what = [*SHORT, "--acceptance", str(tmp_path / "coupled.npz"), "--out", str(tmp_path / "out"), "--policy"]
    assert main([*what, "adaserve", "adaserve+"]) != 0
    assert "those of adaserve are not: give --coupled" in capsys.readouterr().err
    assert main([*what, "adaserve+", "continuous"]) == 0
    assert main([*what, "adaserve", "--coupled"]) == 0


def test_a_measured_machine_has_the_constants_that_it_served_with() -> None:
    planned, measured = profile_named("h200-32b"), profile_named("h200-32b-measured")
    assert measured.verify_ms_by_rows != planned.verify_ms_by_rows
    assert constants_for(measured, "adaserve") == constants_for(planned, "adaserve")
