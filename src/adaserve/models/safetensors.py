"""Weights from safetensors files: one file, or a folder in Hugging Face layout, sharded or not."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from adaserve.errors import InvalidModel, ModelNotFound
from adaserve.models.config import ModelConfig, token_ids

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MAX_JSON = 64 * 2**20


class SafetensorsFiles(Mapping[str, Tensor]):
    """The tensors of some safetensors files, read when asked for.

    Raises InvalidModel, naming the file, for one that is truncated, damaged or not a safetensors file at all.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._files = {path: _open(path) for path in paths}
        self._place = {name: path for path, file in self._files.items() for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        with self._reading(name) as file:
            return file.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        with self._reading(name) as file:
            return tuple(file.get_slice(name).get_shape())

    def part(self, name: str, dim: int, start: int, stop: int) -> Tensor:
        """Rows (dim 0) or columns (dim 1) [start, stop) of a tensor, read without the rest."""
        with self._reading(name) as file:
            whole = file.get_slice(name)
            part: Tensor = whole[start:stop] if dim == 0 else whole[:, start:stop]
            return part

    @contextmanager
    def _reading(self, name: str) -> "Iterator[safe_open]":
        path = self._place[name]
        try:
            yield self._files[path]
        except (SafetensorError, RuntimeError, OSError) as error:
            raise InvalidModel(f"{path}: cannot read tensor {name}: {_line(error)}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)


def folder_weights(folder: Path) -> SafetensorsFiles:
    """Open the weights of a Hugging Face folder; raises ModelNotFound without any, InvalidModel for broken ones."""
    index = folder / _INDEX
    if not index.exists():
        if not (folder / _SINGLE).exists():
            raise ModelNotFound(f"{folder}: no {_SINGLE} and no {_INDEX}; only safetensors weights are read")
        return SafetensorsFiles([folder / _SINGLE])
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise InvalidModel(f"{index}: weight_map must map tensor names to file names")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InvalidModel(f"{index}: {name!r} is not the name of a safetensors file of this folder")
        if not (folder / name).exists():
            raise InvalidModel(f"{folder / name}: this shard is missing; download the model again")
    return SafetensorsFiles([folder / name for name in names])


def folder_config(folder: Path) -> ModelConfig:
    """Read the config of a Hugging Face folder, with the end-of-text ids of its generation_config.json if it has one."""
    path, generation = folder / "config.json", folder / "generation_config.json"
    if not path.exists():
        raise ModelNotFound(f"{folder}: no config.json; a model folder needs one")
    data = read_json(path)
    if generation.exists():
        own = token_ids(data.get("eos_token_id"), f"{path}: eos_token_id")
        generated = token_ids(read_json(generation).get("eos_token_id"), f"{generation}: eos_token_id")
        data = data | {"eos_token_id": [*generated, *own]}
    return ModelConfig.from_huggingface(data, str(path))


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object; raises InvalidModel naming the file for anything else."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise InvalidModel(f"{path}: larger than {_MAX_JSON >> 20} MiB, which no such file is")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidModel(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"{path}: not valid JSON: {_line(error)}") from error
    if not isinstance(data, dict):
        raise InvalidModel(f"{path}: must hold a JSON object")
    return data


def _open(path: Path) -> "safe_open":
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, RuntimeError) as error:
        raise InvalidModel(f"{path}: damaged or truncated safetensors file: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
