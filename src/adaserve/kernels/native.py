"""Builds the C++ kernels beside this file at first use and loads them; without a compiler, their torch twins take over.

A library lives in the user's cache folder under a key of its sources, the compiler and the processor, so that a folder
shared between machines stays right. Their threads are their own (crew.cpp); `use_threads` says how many.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch  # loads the OpenMP runtime that the kernels then share

_FOLDER = Path(__file__).parent
_COMMON = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno")
_MACHINE = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ())
"""Options for this machine, best first; the first set that the compiler takes is used."""

_CREW = "crew"
"""The library with the threads that all others share."""

_log = logging.getLogger(__name__)

_ARGUMENT: dict[str, type[ctypes.c_void_p | ctypes.c_int64 | ctypes.c_double]] = {
    "p": ctypes.c_void_p,
    "i": ctypes.c_int64,
    "d": ctypes.c_double,
}

Function = Callable[..., None]
"""A C function: pointers as integers (`Tensor.data_ptr()`), int64 and float64 arguments, nothing returned."""


class NativeError(Exception):
    """The kernels could not be built or loaded; the message says why."""


def cache_folder() -> Path:
    """The folder for built kernels: ADASERVE_CACHE, or ~/.cache/adaserve."""
    root = os.environ.get("ADASERVE_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "adaserve"


def compiler() -> list[str]:
    """The C++ compiler as a command: CXX, or the first of g++, clang++ and c++ on the path."""
    named = os.environ.get("CXX")
    if named:
        return shlex.split(named)
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    raise NativeError("no C++ compiler (set CXX, or install g++ or clang++)")


def _processor() -> str:
    """What tells processors apart as far as -march=native is concerned."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("vendor_id", "cpu family", "model\t", "model name", "flags", "Features", "CPU part")
    return platform.machine() + "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _run(command: list[str]) -> str:
    """Run a command; its output, or NativeError with the end of what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise NativeError(f"{shlex.join(command[:1])} failed: {done.stderr.strip()[-800:]}")
    return done.stdout


def build(name: str) -> Path:
    """Compile kernels/<name>.cpp unless the cache has it; returns the library's path. Raises NativeError."""
    command = compiler()
    source = _FOLDER / f"{name}.cpp"
    digest = hashlib.sha256()
    for part in (
        source.read_text(),
        *(header.read_text() for header in sorted(_FOLDER.glob("*.h"))),
        _run([*command, "--version"]),
        repr((_COMMON, _MACHINE)),
        _processor(),
    ):
        digest.update(part.encode() + b"\0")
    library = cache_folder() / "kernels" / f"{name}-{digest.hexdigest()[:24]}.so"
    if library.exists():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        # Built elsewhere and renamed: another process sees either nothing or a whole library.
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            fresh = Path(folder) / library.name
            failure = NativeError("nothing was tried")
            for machine in _MACHINE:
                try:
                    _run([*command, *_COMMON, *machine, str(source), "-o", str(fresh)])
                    break
                except NativeError as error:
                    failure = error
            else:
                raise failure
            os.replace(fresh, library)
    except OSError as error:
        raise NativeError(f"cannot write {library.parent}: {error}") from error
    return library


@functools.cache
def _warn_once(reason: str) -> None:
    _log.warning("native kernels are off, the slower torch versions run instead: %s", reason)


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The library built from kernels/<name>.cpp, or None (logged once) when native kernels are off or cannot be had."""
    if os.environ.get("ADASERVE_NATIVE", "1") == "0":
        return None
    try:
        loaded = ctypes.CDLL(str(build(name)))
    except (NativeError, OSError) as error:
        _warn_once(str(error))
        return None
    if name != _CREW and hasattr(loaded, "use_runner"):
        crew = library(_CREW)
        if crew is not None:
            loaded.use_runner(crew.run)
    return loaded


@functools.cache
def function(name: str, symbol: str, signature: str) -> Function | None:
    """A C function of a kernel library, or None when there is none.

    `signature` has a letter per argument: p pointer, i int64, d double. Nothing is returned.
    """
    loaded = library(name)
    if loaded is None:
        return None
    found = loaded[symbol]
    found.argtypes = [_ARGUMENT[letter] for letter in signature]
    found.restype = None
    return found


@functools.cache
def address(name: str, symbol: str) -> int | None:
    """Where a C function of a kernel library is, for native code that calls it, or None when there is none."""
    loaded = library(name)
    return None if loaded is None else ctypes.cast(loaded[symbol], ctypes.c_void_p).value


def use_threads(count: int) -> None:
    """Compute with `count` threads: the native kernels with their own, and torch with one.

    torch waits for all its threads at every small operation, which takes a time slice whenever another process has the core.
    Without native kernels torch computes everything and gets them all.
    """
    set_threads = function(_CREW, "set_threads", "i")
    torch.set_num_threads(count if set_threads is None else 1)
    if set_threads is not None:
        set_threads(count)


def fits(*tensors: torch.Tensor) -> bool:
    """Whether a native kernel takes these tensors: float32, on the CPU, without gaps."""
    for tensor in tensors:  # noqa: SIM110 - a generator costs as much as a small kernel
        if tensor.dtype is not torch.float32 or not tensor.is_cpu or not tensor.is_contiguous():
            return False
    return True


def readable(*tensors: torch.Tensor) -> bool:
    """Whether native code reads these tensors by address: on the CPU, without gaps. Their types are the caller's to know."""
    for tensor in tensors:  # noqa: SIM110 - as above
        if not tensor.is_cpu or not tensor.is_contiguous():
            return False
    return True


def empty_huge(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised CPU tensor on huge pages where the system has them: page walks cost a tenth of a model pass."""
    tensor = torch.empty(*shape, dtype=dtype)
    advise = function("linear", "advise_huge", "pi")
    if advise is not None:
        advise(tensor.data_ptr(), tensor.nbytes)
    return tensor


def native_status() -> str:
    """One line that says whether the native kernels are in use, and why not if not."""
    if os.environ.get("ADASERVE_NATIVE", "1") == "0":
        return "off: ADASERVE_NATIVE=0"
    try:
        for source in sorted(_FOLDER.glob("*.cpp")):
            ctypes.CDLL(str(build(source.stem)))
    except (NativeError, OSError) as error:
        return f"off: {error}"
    return f"on, built in {cache_folder() / 'kernels'}"
