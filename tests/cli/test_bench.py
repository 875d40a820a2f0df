"""`adaserve bench` on a tiny real model: the report, going on, stopping, capacity, and the real server by its URL."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from adaserve.bench.recorded_run import RecordedRun
from adaserve.cli.main import main
from tests.server.launch import Server
from tests.server.tiny import write_model, write_profile

REPORT = {"config", "device", "runs"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("bench") / "tiny")


@pytest.fixture(scope="module")
def engine(model: Path) -> list[str]:
    """Options of the tiny engine."""
    profile = write_profile(model / "profile.json")
    return ["--dtype", "float64", "--threads", "1", "--draft", "ngram", "--profile", str(profile), "--kv-tokens", "20000"]


@pytest.fixture(scope="module")
def trace(model: Path) -> str:
    """40 requests in two seconds, in the paper's format; the last one is longer than the model's context."""
    ratios = [1e4, 1e4, 1e4, -1e5, -1e-3]  # easy, easy, and impossible
    entries: list[dict[str, Any]] = [
        {"emission_time_ms": 50 * n, "input_length": 5, "output_length": 8, "prompt": f"def add{n}(", "slo_ratio": ratios[n % 5]}
        for n in range(40)
    ]
    entries[-1] |= {"prompt": "def " * 1000}
    path = model.parent / "trace.json"
    path.write_text(json.dumps(entries))
    return str(path)


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    status = main(["bench", *arguments])
    found = capsys.readouterr()
    return status, json.loads(found.out.splitlines()[-1]), found.err


def test_a_run_per_policy(model: Path, engine: list[str], trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [trace, "--model", str(model), "--policy", "adaserve", "continuous", *engine, "--out", str(tmp_path)]
    status, report, words = bench(capsys, *arguments)
    assert status == 0 and report.keys() == REPORT
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert [entry["policy"] for entry in report["runs"]] == ["adaserve", "continuous"]
    for entry in report["runs"]:
        assert (entry["requests"], entry["completed"], entry["refused"]) == (40, 39, 1)
        assert entry["slo_attainment"] == pytest.approx(0.8)
        assert {name: found["attainment"] for name, found in entry["per_class"].items()} == {
            "10000x": 1,
            "100000ms": 1,
            "0.001ms": 0,
        }
        assert entry["per_class"]["0.001ms"]["requests"] == 8
    assert report["config"]["baseline_ms"] == 2.0 and report["config"]["lookup_over_earlier_requests"] is False
    assert report["config"]["looks_up_beyond_eos"] is True  # the tiny engine drafts by look-up, and the trace ignores ends
    assert "attained" in (tmp_path / "report.md").read_text()
    # The same command finds all of it done.
    status, again, words = bench(capsys, *arguments)
    assert status == 0 and again["runs"] == report["runs"]
    assert words.count("from an earlier start") == 2


def test_a_sweep_and_a_capacity(model: Path, engine: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generated", "--duration", "0.5", "--rate", "10", "--model", str(model), *engine, "--out", str(tmp_path)]
    arguments += ["--slo-class", "coding=tpot:0.001", "--slo-class", "chat=tpot:60000", "--slo-class", "summarization=tpot:60000"]
    arguments += ["--output-scale", "0.05", "--prompt-scale", "0.2", "--mix", "coding=0.5,chat=0.5"]
    status, report, _ = bench(capsys, *arguments, "--sweep", "rate=1,2", "--sweep", "urgent=0.2", "--capacity")
    assert status == 0
    points = report["config"]["points"]
    assert [(point["speed"], point["urgent"]) for point in points] == [(1, None), (2, None), (1, 0.2)]
    assert all(
        entry["per_class"]["coding"]["attainment"] in (0.0, None) for entry in report["runs"] if "coding" in entry["per_class"]
    )
    assert set(report["capacity"]) == {"0.95", "0.99"}
    assert len(report["config"]["probes"]) >= 1


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--policy", "nonsense"], "unknown policy 'nonsense'"),
        (["--sweep", "load=3"], "a sweep reads like"),
        (["--base-url", "http://127.0.0.1:9"], "no OpenAI-compatible server at http://127.0.0.1:9"),
        (["--beside", "nowhere"], "there are no runs in nowhere"),
        (["--start", "1e6"], "no request arrives"),
    ],
)
def test_wrong_use_is_one_line(
    more: list[str], reason: str, model: Path, engine: list[str], trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", trace, "--model", str(model), *engine, "--out", str(tmp_path), *more]) == 2
    found = capsys.readouterr()
    assert reason in found.err.splitlines()[-1] and "Traceback" not in found.err and found.out == ""


def test_ctrl_c_reports_what_there_is(model: Path, engine: list[str], tmp_path: Path) -> None:
    arguments = ["generated", "--duration", "100", "--rate", "5", "--output-scale", "0.1", "--prompt-scale", "0.2"]
    command = [
        sys.executable,
        "-m",
        "adaserve.cli.main",
        "bench",
        *arguments,
        "--model",
        str(model),
        *engine,
        "--out",
        str(tmp_path),
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes) as process:  # type: ignore[call-overload]
        for line in process.stderr:
            if " 0 s, " in line:  # the replay has begun; the next line of progress comes ten seconds later
                break
        time.sleep(2.0)  # by then a request has arrived: at this seed the first one does within a second
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    report = json.loads(out.splitlines()[-1])
    assert report["config"]["points"][0]["complete"] is False
    assert report["runs"][0]["requests"] > 0
    assert "Cut short" in (tmp_path / "report.md").read_text()


def test_the_real_server_by_its_url(
    model: Path, engine: list[str], trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server([str(model), "--served-model-name", "tiny", *engine])
    try:
        server.wait_until_ready()
        arguments = [trace, "--base-url", server.url + "/v1", "--policy", "ours", "--out", str(tmp_path)]
        status, report, _ = bench(capsys, *arguments)
        assert status == 0 and report.keys() == REPORT
        entry = report["runs"][0]
        assert (entry["policy"], entry["requests"], entry["completed"]) == ("ours", 40, 39)
        assert entry["slo_attainment"] == pytest.approx(0.8)
        assert report["config"]["model"] == "tiny" and report["config"]["baseline_ms"] > 0
        server.process.kill()
        server.process.wait()
        # The server is gone: what was measured stays, and can be shown beside other runs.
        assert main(["bench", *arguments, "--speed", "2"]) == 2
        capsys.readouterr()
    finally:
        server.stop()
    status, report, _ = bench(
        capsys,
        trace,
        "--model",
        str(model),
        *engine,
        "--duration",
        "0.5",
        "--beside",
        str(tmp_path),
        "--out",
        str(tmp_path / "2"),
    )
    assert [entry["policy"] for entry in report["runs"]] == ["adaserve+", "ours"]


def test_a_recorded_run_can_be_read_again(
    model: Path, engine: list[str], trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [trace, "--model", str(model), *engine, "--duration", "0.6", "--sweep", "seed=0,1", "--policy", "continuous"]
    status, report, _ = bench(capsys, *arguments, "--record", "--stop-at-eos", "--out", str(tmp_path))
    assert status == 0 and "looks_up_beyond_eos" not in report["config"]
    runs = [RecordedRun.load(path) for path in sorted((tmp_path / "recorded").iterdir())]
    assert len(runs) == 2 and [run.figures.attainment for run in runs] == [entry["slo_attainment"] for entry in report["runs"]]
    assert runs[0].outputs == runs[1].outputs and all(runs[0].outputs.values())
    assert all(seconds > 0 for run in runs for _, seconds in run.steps)
    assert main(["bench", *arguments, "--record"]) == 2
    assert "--record needs a folder" in capsys.readouterr().err
