"""The command line: help is instant, and a wrong start ends in one clear line and status 2."""

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adaserve.cli.main import COMMANDS, installed, main
from tests.server.tiny import write_model, write_profile


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("cli") / "tiny")


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    try:
        status = main(arguments)
    except SystemExit as error:
        status = int(error.code or 0)
    found = capsys.readouterr()
    return status, found.out, found.err


def test_help_is_instant_and_loads_nothing() -> None:
    code = "import sys; sys.argv = ['adaserve', '--help']; from adaserve.cli.main import main; main(); print(*sys.modules)"
    started = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert time.perf_counter() - started < 5
    assert "OpenAI-compatible server" in out
    assert set(out.split()).isdisjoint({"torch", "transformers", "fastapi", "numpy"})


@pytest.mark.parametrize("name", installed(COMMANDS))
def test_every_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run([name, "--help"], capsys)
    assert status == 0
    assert re.search(rf"^\s*adaserve {name}", out.partition("examples:")[2], flags=re.MULTILINE)


def test_version_and_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"], capsys)[1].startswith("adaserve 0.")
    status, out, _ = run([], capsys)
    assert status == 2 and all(name in out for name in installed(COMMANDS))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["fly"], "unknown command 'fly'"),
        (["serve", "--nonsense"], "unrecognized arguments"),
        (["serve", "no/such-model"], "no/such-model"),
        (["serve", "/no/such/folder"], "/no/such/folder"),
        (["serve", "MODEL", "--draft", "nodraft"], "nodraft"),
        (["serve", "MODEL", "--port", "BUSY"], "choose another --port"),
        (["serve", "MODEL", "--port", "99999"], "cannot listen"),
        (["serve", "MODEL", "--host", "no.such.host.invalid"], "cannot listen"),
        (["serve", "MODEL", "--policy", "magic"], "unknown policy 'magic'"),
        (["serve", "MODEL", "--tensor-parallel-size", "0"], "tensor_parallel_size must be at least 1"),
        (["serve", "MODEL", "--tensor-parallel-size", "3"], "tensor_parallel_size 3 does not divide"),
        (["serve", "MODEL", "--max-num-seqs", "0"], "max_num_seqs must be at least 1"),
        (["serve", "MODEL", "--depth", "-1"], "--depth"),
        (["serve", "MODEL", "--budget", "many"], "must be auto or an integer"),
        (["serve", "MODEL", "--dtype", "int3"], "--dtype"),
        (["serve", "MODEL", "--slo-class", "coding"], "an SLO class reads like"),
        (["serve", "MODEL", "--slo-class", "a=tpot:0"], "finite positive"),
        (["serve", "MODEL", "--default-slo", "gold"], "'gold', which does not exist"),
        (["serve", "MODEL", "--service-tier", "flex=gold"], "'gold', which does not exist"),
        (["serve", "TRUNCATED"], "model.safetensors: broken or truncated"),
        (["serve", "GARBLED"], "config.json: cannot be read"),
        (["serve", "BADGGUF"], "bad.gguf"),
        (["generate", "MODEL", "--prompt", "x", "--slo", "tpot:nan"], "finite positive"),
        (["generate", "MODEL", "--prompt", "x", "--max-tokens", "0"], "max_tokens must be"),
        (["generate", "MODEL", "--prompt", "x", "--temperature", "-1"], "temperature must be"),
        (["generate", "MODEL"], "--prompt"),
        (["pull", "gpt-9"], "known names: demo"),
    ],
)
def test_wrong_starts(arguments: list[str], part: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        stand_ins = {
            "MODEL": str(model),
            "BUSY": str(busy.getsockname()[1]),
            "TRUNCATED": truncated(model, tmp_path),
            "GARBLED": garbled(model, tmp_path),
            "BADGGUF": bad_gguf(tmp_path),
        }
        port = [] if "--port" in arguments or arguments[0] != "serve" else ["--port", "0"]
        status, out, err = run([stand_ins.get(word, word) for word in arguments] + port, capsys)
    assert status == 2
    assert part in err
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err
    assert out == ""


def truncated(model: Path, folder: Path) -> str:
    copy = folder / "truncated"
    copy.mkdir()
    for path in model.iterdir():
        data = path.read_bytes()
        (copy / path.name).write_bytes(data[: len(data) // 2] if path.suffix == ".safetensors" else data)
    return str(copy)


def garbled(model: Path, folder: Path) -> str:
    copy = folder / "garbled"
    copy.mkdir()
    for path in model.iterdir():
        (copy / path.name).write_bytes(b"{nonsense" if path.name == "config.json" else path.read_bytes())
    return str(copy)


def bad_gguf(folder: Path) -> str:
    path = folder / "bad.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 40)
    return str(path)


def generate(model: Path, tmp_path: Path, *more: str) -> list[str]:
    profile = write_profile(tmp_path / "profile.json")
    common = ["--dtype", "float64", "--threads", "1", "--draft", "ngram", "--profile", str(profile), "--max-tokens", "12"]
    return ["generate", str(model), "--prompt", "def add(", "--prompt", "fox", *common, *more]


def test_generate_prints_texts_in_order_and_the_report_aside(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(generate(model, tmp_path, "--slo", "tpot:60000", "--json"), capsys)
    assert status == 0
    found = json.loads(out)
    assert [item["prompt"] for item in found["outputs"]] == ["def add(", "fox"]
    assert all(item["slo"]["met"] is True and item["slo"]["output_tokens"] <= 12 for item in found["outputs"])
    status, out, err = run(generate(model, tmp_path), capsys)
    assert status == 0
    assert out == "".join(item["text"] + "\n" for item in found["outputs"])
    assert "no target" in err and "TPOT" in err


def test_generate_keeps_the_law(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def texts(*more: str) -> list[str]:
        status, out, _ = run(generate(model, tmp_path, "--temperature", "0.7", "--seed", "5", "--json", *more), capsys)
        assert status == 0
        return [item["text"] for item in json.loads(out)["outputs"]]

    assert texts() == texts("--policy", "continuous") == texts("--policy", "spec:2")
    assert texts() != texts("--seed", "6")


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(["info", "--json"], capsys)
    assert status == 0
    found = json.loads(out)
    assert found["versions"]["torch"] and found["devices"]["cpu"] and "demo" in found["models"] and found["kernels"]
    assert "versions" in run(["info"], capsys)[1]
