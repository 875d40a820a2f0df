"""The kernel that sums over ranks equals its twin.

Without a GPU ranks are processes, their memory files, and Triton's interpreter runs the kernel; with one, ranks are its streams.
On several benchmarks/gpu_sums.py compares them before it measures, and tests/parallel/test_processes.py runs whole engines.
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adaserve.kernels.peers import Peers, prepare, sum_norm, sum_norm_reference
from adaserve.parallel.peers import ROW_BYTES as PEER_ROW_BYTES
from adaserve.parallel.peers import SENT_ROWS
from tests.devices import DEVICE, needs_gpu, needs_triton

pytestmark = needs_triton
interpreted = pytest.mark.skipif(DEVICE.type == "cuda", reason="a GPU cannot take files for memory")

ROWS, ROW_BYTES = 6, 512
SHAPES = [(1, 8), (5, 24), (6, 64), (3, 33), (5, 24), (0, 8), (6, 1)]
"""Of one sum after another [M, H]. Rows take part in different numbers of them."""
EPS = 1e-5


def peers_of(folder: Path, rank: int, size: int) -> Peers:
    """In files, which all ranks map: `size` of them, of zeros where they are new."""
    flags, inboxes = Peers.memory(size, ROWS, ROW_BYTES)
    own = [torch.from_file(str(folder / str(r)), shared=True, size=flags + inboxes, dtype=torch.uint8) for r in range(size)]
    addresses = torch.tensor([memory.data_ptr() for memory in own])  # [size]
    sums, given_up = (torch.zeros(n, dtype=torch.int64) for n in (ROWS, 1))
    return Peers(rank, size, ROWS, ROW_BYTES, addresses + flags, addresses, sums, given_up, tuple(own), None)


def inputs(step: int, shape: tuple[int, int], size: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor]:
    """Every rank's summand, the residual stream and the weight."""
    draw = torch.Generator().manual_seed(step)
    parts = [torch.randn(*shape, generator=draw).to(dtype) for _ in range(size)]
    return parts, torch.randn(*shape, generator=draw).to(dtype), torch.randn(shape[1], generator=draw).to(dtype)


def be_rank(folder: Path, rank: int, size: int, dtype: torch.dtype) -> None:
    """All sums, as one rank has them."""
    peers = peers_of(folder, rank, size)
    found = []
    for step, shape in enumerate(SHAPES):
        parts, residual, weight = inputs(step, shape, size, dtype)
        assert peers.take(parts[rank])
        found.append(sum_norm(parts[rank], residual, weight, EPS, peers))
    torch.save(found, folder / f"found {rank}")


@interpreted
@pytest.mark.parametrize(("size", "dtype"), [(2, "float32"), (2, "bfloat16"), (3, "float64")])
def test_ranks_have_the_sum(tmp_path: Path, size: int, dtype: str) -> None:
    command = [sys.executable, "-m", "tests.kernels.test_triton_peers", str(tmp_path), str(size), dtype]
    peers_of(tmp_path, 0, size)  # makes the files
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(size)]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0] * size
    finally:
        for rank in ranks:
            rank.kill()
    found = [torch.load(tmp_path / f"found {rank}") for rank in range(size)]
    for step, shape in enumerate(SHAPES):
        check([sums[step] for sums in found], *inputs(step, shape, size, getattr(torch, dtype)))


def check(found: list[tuple[Tensor, Tensor]], parts: list[Tensor], residual: Tensor, weight: Tensor) -> None:
    """All ranks have the same bits, which are the twin's but for the last ones: the interpreter truncates where a GPU rounds."""
    rough = residual.dtype == torch.bfloat16
    for own, expected in zip(found[0], sum_norm_reference(parts, residual, weight, EPS), strict=True):
        torch.testing.assert_close(own, expected, rtol=1.6e-2 if rough else 1e-5, atol=4e-2 if rough else 1e-5)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def on_one_gpu(size: int) -> list[Peers]:
    """Ranks whose memory is all on one GPU."""
    flags, inboxes = Peers.memory(size, ROWS, ROW_BYTES)
    own = [torch.zeros(flags + inboxes, dtype=torch.uint8, device=DEVICE) for _ in range(size)]
    addresses = torch.tensor([memory.data_ptr() for memory in own], device=DEVICE)  # [size]

    def zeros(count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int64, device=DEVICE)

    places, letter = (addresses + flags, addresses), Peers.letter_to(DEVICE)
    return [Peers(rank, size, ROWS, ROW_BYTES, *places, zeros(ROWS), zeros(1), tuple(own), letter) for rank in range(size)]


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [2, 3])
def test_streams_have_the_sum(size: int, dtype: torch.dtype) -> None:
    peers = on_one_gpu(size)
    streams = [torch.cuda.Stream() for _ in range(size)]
    for step, shape in enumerate(SHAPES):
        parts, residual, weight = inputs(step, shape, size, dtype)
        parts, residual, weight = [part.to(DEVICE) for part in parts], residual.to(DEVICE), weight.to(DEVICE)
        for rank in range(size):  # for the first time alone: what has to be loaded might wait for kernels that run
            peers[rank].given_up.fill_(1)
            sum_norm(parts[rank], residual, weight, EPS, peers[rank])
            peers[rank].given_up.fill_(0)
        torch.cuda.synchronize()
        found = []
        for rank, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found.append(sum_norm(parts[rank], residual, weight, EPS, peers[rank]))
        torch.cuda.synchronize()
        check(found, parts, residual, weight)


@pytest.mark.cuda
@needs_gpu
def test_kernels_that_wait_are_let_go_on() -> None:
    (peers, _), row = on_one_gpu(2), torch.ones(1, 8, device=DEVICE)
    prepare(row[0], row.dtype, EPS, peers)
    torch.cuda.synchronize()
    sum_norm(row, row, row[0], EPS, peers)
    time.sleep(0.2)
    assert not torch.cuda.current_stream().query(), "there is no rank 1"
    peers.give_up()
    torch.cuda.synchronize()


@interpreted
def test_nobody_is_waited_for_after_giving_up(tmp_path: Path) -> None:
    peers = peers_of(tmp_path, 0, 2)
    peers.given_up.fill_(1)
    parts, residual, weight = inputs(0, (3, 8), 2, torch.float32)
    sum_norm(parts[0], residual, weight, EPS, peers)  # returns, though there is no rank 1


@pytest.mark.parametrize("size", range(1, 17))
def test_inboxes_are_aligned(size: int) -> None:
    """A thread writes 16 bytes at once, whatever number of ranks shares the rows."""
    flags, inboxes = Peers.memory(size, SENT_ROWS // size, PEER_ROW_BYTES)
    assert flags >= size * (SENT_ROWS // size) * 8 and flags % 16 == 0 and inboxes % 16 == 0


def test_what_there_is_room_for(tmp_path: Path) -> None:
    peers = peers_of(tmp_path, 0, 2)
    assert peers.take(torch.zeros(ROWS, 128))
    assert not peers.take(torch.zeros(ROWS + 1, 128))
    assert not peers.take(torch.zeros(ROWS, 129))
    assert not peers.take(torch.zeros(ROWS, 64, dtype=torch.int64))


if __name__ == "__main__":
    be_rank(Path(sys.argv[1]), int(sys.argv[4]), int(sys.argv[2]), getattr(torch, sys.argv[3]))
