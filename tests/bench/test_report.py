"""report.json holds what the contract says and nothing else; report.md and the plots hold something for everything that ran."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from adaserve.bench.experiment import Capacity
from adaserve.bench.report import NO_PLOTS, write_report
from adaserve.bench.report_text import LOOKUP_WARNING
from adaserve.bench.runs import Point
from adaserve.errors import InvalidConfig
from adaserve.metrics import PHASES
from tests.bench.made import run

RUN_KEYS = {
    "policy", "slo_attainment", "tpot_attainment", "goodput_tokens_per_s", "throughput_tokens_per_s", "requests", "completed",
    "per_class", "mean_tokens_per_step", "ttft_p50_ms", "ttft_p99_ms", "refused", "mean_accepted", "step_share",
    "step_time_error",
}  # fmt: skip
CLASS_KEYS = {"requests", "attainment", "tpot_p50_ms", "tpot_p99_ms", "ttft_p50_ms", "ttft_p99_ms"}
POLICIES = ("adaserve", "spec:3")
SWEPT = [
    run(policy, point, tpot)
    for point in (Point(), Point(2.0), Point(urgent=0.2), Point(urgent=0.6), Point(slo_scale=0.8))
    for policy, tpot in zip(POLICIES, (0.02, 0.05), strict=True)
]
FOUND = Capacity({0.95: {"adaserve": 1.8, "spec:3": None}, 0.99: {"adaserve": 1.5}}, (run("adaserve", Point(1.8)),))
CONFIG = {"trace": "t.json", "baseline_ms": 20.0, "commit": "abc"}


def test_the_contract_s_keys_and_no_others(tmp_path: Path) -> None:
    report = write_report(tmp_path, CONFIG, "a machine", SWEPT, FOUND)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    assert report.keys() == {"config", "device", "runs", "capacity"}
    assert report["device"] == "a machine"
    for entry in report["runs"]:
        assert entry.keys() == RUN_KEYS
        assert entry["step_share"].keys() == set(PHASES)
        assert all(found.keys() == CLASS_KEYS for found in entry["per_class"].values())
    assert report["capacity"] == {"0.95": {"adaserve": 1.8, "spec:3": None}, "0.99": {"adaserve": 1.5}}
    assert "capacity" not in write_report(tmp_path, CONFIG, "a machine", SWEPT)


def test_points_stand_beside_the_runs(tmp_path: Path) -> None:
    config = write_report(tmp_path, CONFIG, "a machine", SWEPT, FOUND)["config"]
    assert [(point["policy"], point["speed"], point["urgent"]) for point in config["points"]] == [
        (entry.policy, entry.point.speed, entry.point.urgent) for entry in SWEPT
    ]
    assert [probe["slo_attainment"] for probe in config["probes"]] == [pytest.approx(2 / 3)]


def test_the_page_and_the_plots(tmp_path: Path) -> None:
    write_report(tmp_path, CONFIG, "a machine", [*SWEPT, run("adaserve", Point(seed=1), complete=False)], FOUND)
    page = (tmp_path / "report.md").read_text()
    for words in ("t.json on a machine", "Baseline 20.00 ms", "capacity@95%", "below the lowest probe", "not found out", "1.8",
                  "spec:3, speed 2", "66.7%", "33.3%", "Cut short: adaserve, speed 1, seed 1"):  # fmt: skip
        assert words in page, words
    names = {
        "attainment_by_rate.png", "goodput_by_rate.png", "attainment_by_urgent.png", "attainment_by_slo_scale.png",
        "accepted_by_rate.png", "per_class.png", "tpot.png", "accepted.png", "step_time.png", "slack.png",
    }  # fmt: skip
    assert {path.name for path in tmp_path.glob("*.png")} == names
    assert all(f"]({name})" in page and (tmp_path / name).stat().st_size > 5000 for name in names)


def test_a_server_that_is_not_ours_has_no_steps(tmp_path: Path) -> None:
    report = write_report(tmp_path, CONFIG, "there", [replace(run("vllm"), totals=None)])
    assert report["runs"][0]["mean_tokens_per_step"] is None
    assert "## Steps" not in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "step_time.png").exists()


def test_nothing_ran(tmp_path: Path) -> None:
    assert write_report(tmp_path, CONFIG, "a machine", [])["runs"] == []
    assert list(tmp_path.glob("*.png")) == []


def test_without_matplotlib_there_are_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adaserve.bench.plots", None)
    write_report(tmp_path, CONFIG, "a machine", SWEPT)
    page = (tmp_path / "report.md").read_text()
    assert NO_PLOTS in page and "| spec:3, speed 2 |" in page


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidConfig, match="cannot write the report"):
        write_report(tmp_path / "file", CONFIG, "a machine", SWEPT)


def test_looking_up_beyond_the_end_of_text_is_said(tmp_path: Path) -> None:
    write_report(tmp_path, CONFIG | {"looks_up_beyond_eos": True}, "a machine", SWEPT)
    assert LOOKUP_WARNING in (tmp_path / "report.md").read_text()
    write_report(tmp_path, CONFIG, "a machine", SWEPT)
    assert LOOKUP_WARNING not in (tmp_path / "report.md").read_text()
