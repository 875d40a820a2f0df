"""Ranks as processes: the same tokens as one rank gives, and what happens when one dies or cannot start."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from socket import socketpair

import pytest
import torch
import torch.distributed as dist

from adaserve.build import Parts, load_parts
from adaserve.config import EngineConfig
from adaserve.errors import EngineFailed, InvalidConfig
from adaserve.executor.device import DeviceExecutor
from adaserve.parallel.messages import Here, Link
from adaserve.parallel.ranks import LOST_OTHERS, Ranks
from adaserve.parallel.world import World, check_devices
from adaserve.request import Request, SamplingParams, Targets
from tests.engines import SMALL, run
from tests.server.launch import Server
from tests.server.tiny import write_model, write_profile

SLOW = 60.0
"""Seconds after which a process that should be gone counts as left behind."""


def config(folder: Path, size: int) -> EngineConfig:
    return EngineConfig(
        str(folder),
        draft="ngram",
        dtype="float64",
        device="cpu",
        threads=1,
        tensor_parallel_size=size,
        profile=str(folder / "profile.json"),
        max_num_seqs=4,
        kv_tokens=4000,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = write_model(tmp_path_factory.mktemp("parallel") / "tiny")
    write_profile(model / "profile.json")
    return model


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[Parts]:
    """The tiny model on two ranks."""
    parts = load_parts(config(folder, 2), lambda line: None)
    try:
        yield parts
    finally:
        parts.close()


def requests() -> list[Request]:
    sampling = [SamplingParams(max_tokens=12, temperature=t, ignore_eos=True) for t in (0.0, 1.0)]
    return [
        Request(f"r{i}", tuple(range(3 + i, 15 + 2 * i)), sampling[i % 2], Targets(tpot=0.01), seed=i, arrived=0.0)
        for i in range(6)
    ]


def test_two_processes_give_the_tokens_of_one(folder: Path, shared: Parts) -> None:
    alone = load_parts(config(folder, 1), lambda line: None)
    expected = run(alone.engine(alone.policy("continuous")), requests(), check=False)
    for policy in ("continuous", "adaserve"):  # one after the other on the same ranks, as `bench` does it
        assert run(shared.engine(shared.policy(policy, SMALL)), requests(), burst=2).tokens == expected.tokens


def test_one_engine_of_ranks_a_process(folder: Path, shared: Parts) -> None:
    """A second one is refused, leaves nothing behind, and the first goes on."""
    with pytest.raises(InvalidConfig, match="close that one first"):
        load_parts(config(folder, 2), lambda line: None)
    assert dist.is_initialized(), "the group is the first one's"
    run(shared.engine(shared.policy("continuous")), requests()[:1])


def test_a_rank_that_dies_is_told(shared: Parts) -> None:
    assert shared.world is not None
    engine = shared.engine(shared.policy("continuous"))
    engine.add(requests()[0])
    assert engine.step() is not None
    (process,) = shared.world.ranks.processes
    process.kill()
    with pytest.raises(EngineFailed, match=r"rank 1 .* died \(signal 9\): start the engine again"):
        while engine.step() is not None:
            pass
    assert not shared.world.ranks.folder.exists()
    shared.close()
    shared.close()


def test_captured_calls_go_before_the_group_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL waits for ever to end a group of which a graph still holds a collective."""
    parts = load_parts(config(folder, 2), lambda line: None)
    order: list[str] = []
    let_go, end = DeviceExecutor.close, World.close
    monkeypatch.setattr(DeviceExecutor, "close", lambda executor: (order.append("executor"), let_go(executor)))
    monkeypatch.setattr(World, "close", lambda world: (order.append("world"), end(world)))
    parts.close()
    assert order == ["executor", "world"]
    assert not dist.is_initialized()


TWO_GPUS = pytest.param(
    "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]
)
USER = """
import gc, sys
from dataclasses import replace

import torch.distributed as dist
from adaserve.build import load_parts
from tests.parallel.test_processes import Path, config, requests

device, end = sys.argv[2:]

def use():
    parts = load_parts(replace(config(Path(sys.argv[1]), 2), device=device, dtype="float32"), lambda line: None)
    engine = parts.engine(parts.policy("continuous"))
    for request in requests():
        engine.add(request)
    return parts, engine

parts, engine = use()
while engine.step() is not None:
    pass
if end != "leave":
    parts.close()
if end == "again":  # what the first one does once more when it is forgotten must not concern the second one
    kept = parts, engine
    parts, engine = use()
    engine.step()
    del kept
    gc.collect()
    assert dist.is_initialized()
    while engine.step() is not None:
        pass
print("used", flush=True)
"""


@pytest.mark.parametrize("end", ["close", "leave", "again"])
@pytest.mark.parametrize("device", ["cpu", TWO_GPUS])
def test_a_process_with_ranks_ends(folder: Path, device: str, end: str) -> None:
    """On GPUs steps with collectives have been captured, for which NCCL waits; closing lets go of them, and so does leaving."""
    command = [sys.executable, "-c", USER, str(folder), device, end]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * SLOW, check=False)
    assert (done.returncode, done.stdout) == (0, "used\n"), done.stderr
    assert "Traceback" not in done.stderr


MET = """
import shutil, sys
from pathlib import Path

import torch
import torch.distributed as dist
from adaserve.parallel.group import connect

group = connect(Path(sys.argv[1]), rank=0, size=1, device=torch.device("cpu"), timeout=600.0)
shutil.rmtree(sys.argv[1])
try:
    dist.distributed_c10d._get_default_store().check(["nothing"])
except RuntimeError:
    print("not found")
"""


def test_nobody_waits_for_the_file_where_ranks_met(tmp_path: Path) -> None:
    """NCCL's watcher looks into it all the time, and the group's end waits for the watcher."""
    done = subprocess.run([sys.executable, "-c", MET, str(tmp_path)], capture_output=True, text=True, timeout=SLOW, check=False)
    assert done.stdout == "not found\n", done.stderr


def test_a_rank_that_never_comes_up_is_told() -> None:
    ranks = Ranks.start(1)
    ranks.processes[0].kill()
    with pytest.raises(EngineFailed, match="rank 1 .* died while it was starting"):
        ranks.answers(Here)
    ranks.close()
    assert not ranks.folder.exists()


def process(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)


def test_the_rank_that_died_first_is_named(tmp_path: Path) -> None:
    """The others end as well, for they lose it, and say so."""
    ends = [f"import sys; sys.exit({LOST_OTHERS})", "import os; os.kill(os.getpid(), 9)", "import sys; sys.stdin.read()"]
    processes = tuple(map(process, ends))
    links = tuple(Link(socketpair()[0]) for _ in ends)
    for ended in processes[:2]:
        ended.wait(SLOW)
    ranks = Ranks(links, processes, tmp_path / "none", threading.Event())
    with pytest.raises(EngineFailed, match=r"rank 2 .* died"):
        ranks.check()
    with pytest.raises(EngineFailed, match=r"rank 2 .* died \(signal 9\)"), ranks.watched():
        raise EngineFailed("the ranks lost each other")
    assert processes[2].poll() == 0


def test_other_errors_are_told_as_they_are(tmp_path: Path) -> None:
    living = process("import sys; sys.stdin.read()")
    ranks = Ranks((Link(socketpair()[0]),), (living,), tmp_path / "none", threading.Event())
    ranks.check()
    with pytest.raises(ValueError, match="something else"), ranks.watched():
        raise ValueError("something else")
    ranks.close()


LEADER = """
import sys, time
from adaserve.parallel.messages import Here, Load
from adaserve.parallel.ranks import Ranks

ranks = Ranks.start(1)
ranks.send(Load(1, 2, "tiny", sys.argv[1], "safetensors folder", "float64", "cpu", 1, 600.0))
ranks.answers(Here)
print(ranks.processes[0].pid, ranks.folder, flush=True)
if sys.argv[2] == "stay":
    time.sleep(600)
"""


@pytest.mark.parametrize("end", ["stay", "go"])
def test_no_rank_outlives_rank_0(folder: Path, end: str) -> None:
    """Whether rank 0 is killed or comes to its end without closing anything, and although the other waits for it in gloo."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LEADER, str(folder), end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as leader:
        assert leader.stdout is not None
        first, meeting = leader.stdout.readline().decode().split()
        pid = int(first)
        if end == "stay":
            leader.send_signal(signal.SIGKILL)
        status = leader.wait(SLOW)
    assert status == (-signal.SIGKILL if end == "stay" else 0)
    deadline = time.monotonic() + SLOW
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)
    assert not Path(meeting).exists()


def _alive(pid: int) -> bool:
    """Whether a process runs; one that only waits for its parent to notice does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_server_of_ranks(folder: Path) -> None:
    """It serves; a rank's death ends it like the engine's, and nobody is left behind."""
    options = ["--dtype", "float64", "--threads", "1", "--draft", "ngram", "--kv-tokens", "4000", "--device", "cpu"]
    profile = ["--profile", str(folder / "profile.json")]
    server = Server([str(folder), *options, *profile, "--served-model-name", "tiny", "--tensor-parallel-size", "2"])
    server.wait_until_ready()
    body = {"model": "tiny", "prompt": "The dog", "max_tokens": 8, "temperature": 0}
    assert server.http.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] == 8
    engine = server.engine_pid
    assert engine is not None
    (rank,) = map(int, Path(f"/proc/{engine}/task/{engine}/children").read_text().split())
    os.kill(rank, signal.SIGKILL)
    assert server.http.post("/v1/completions", json=body).status_code == 503
    assert server.process.wait(SLOW) == 1, "a supervisor must see it"
    assert "rank 1 of the tensor-parallel engine died (signal 9)" in server.words()
    assert not _alive(engine)
    server.stop()


def test_more_ranks_than_the_model_has_heads(folder: Path) -> None:
    with pytest.raises(InvalidConfig, match="tensor_parallel_size 3 does not divide .* use one of 1, 2"):
        load_parts(config(folder, 3), lambda line: None)


def test_more_ranks_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(2, torch.device("cuda"))
    check_devices(8, torch.device("cpu"))
    with pytest.raises(InvalidConfig, match="asks for 4 GPUs and this machine shows 2: use at most 2"):
        check_devices(4, torch.device("cuda"))
