import os
import subprocess
import sys
from pathlib import Path

import pytest

from adaserve.kernels import native
from tests.devices import needs_native

CHECK = """
import logging, sys, torch
logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s")
from adaserve.kernels import native
from adaserve.kernels.gate import silu_mul
from adaserve.kernels.linear import Linear, linear_reference
from adaserve.kernels.norm import rms_norm
torch.manual_seed(0)
x, weight = torch.randn(3, 50), torch.randn(20, 50).bfloat16()
torch.testing.assert_close(Linear(weight)(x), linear_reference(x, weight, None))
silu_mul(x), rms_norm(x, torch.ones(50), 1e-5)
print(native.library("rows") is not None)
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True, timeout=120
    )


@needs_native
def test_the_kernels_of_this_machine_are_built():
    """Without them every other test here would compare the twins with themselves."""
    assert native.native_status().startswith("on")


def test_switched_off_the_twins_answer_silently():
    done = run(CHECK, ADASERVE_NATIVE="0")
    assert done.stdout.split() == ["False"]
    assert "WARNING" not in done.stderr


@needs_native
def test_without_a_compiler_one_warning_and_the_twins(tmp_path: Path):
    done = run(CHECK, CXX="no-such-compiler", ADASERVE_CACHE=str(tmp_path))
    assert done.stdout.split() == ["False"]
    assert done.stderr.count("native kernels are off") == 1
    assert "no-such-compiler" in done.stderr


@needs_native
def test_a_cache_that_cannot_be_written_is_no_disaster(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    done = run(CHECK, ADASERVE_CACHE=str(tmp_path / "file"))
    assert done.stdout.split() == ["False"]
    assert done.stderr.count("native kernels are off") == 1


@needs_native
def test_processes_may_build_at_once(tmp_path: Path):
    code = "from adaserve.kernels import native; print(native.build('crew'))"
    environment = {**os.environ, "ADASERVE_CACHE": str(tmp_path)}
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=120)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(paths) == 1
    assert [str(path) for path in (tmp_path / "kernels").iterdir()] == list(paths), "no half-built files stay behind"


def test_a_name_without_a_source_is_an_error():
    with pytest.raises(FileNotFoundError):
        native.build("nothing")
