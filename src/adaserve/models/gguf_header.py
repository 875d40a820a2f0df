"""The header of a GGUF file, read with suspicion: every count is checked against the bytes that are there.

    magic "GGUF" | version | tensor count | metadata count | metadata | tensor infos | padding | tensor data

A reader that believes the counts can be made to loop or to allocate for ever; this one does work proportional to the file's size
at most, and refuses in one line.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaserve.errors import InvalidConfig, InvalidModel

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_KEYS, _MAX_TENSORS, _MAX_ELEMENTS, _MAX_NAME = 65_536, 262_144, 4_194_304, 65_535

Value = int | float | bool | str | list[str] | np.ndarray
"""A metadata value; arrays of numbers come as numpy arrays."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file.

    shape is in PyTorch's order, rows first. kind is GGML's number for the quantisation. [offset, offset + size) are its bytes.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata and tensor infos of one file."""

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> GgufHeader:
    """Read and check a header; raises InvalidModel naming file and cause."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24:
                raise InvalidModel(f"{path}: truncated: {size} bytes are no GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(path, data, size).header()
    except OSError as error:
        raise InvalidModel(f"{path}: cannot be read: {error.strerror}") from error


class _Cursor:
    """A place in the file that moves forward and never past the end."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self._path = path
        self._data = data
        self._size = size
        self._at = 0

    def header(self) -> GgufHeader:
        if self._take(4) != b"GGUF":
            raise self._invalid("not a GGUF file: the magic number is wrong")
        version = self._number("I")
        if version not in (2, 3):
            raise self._invalid(f"GGUF version {version} is not supported; these are: 2, 3 (little-endian)")
        tensors = self._count("Q", _MAX_TENSORS, 24, "tensors")
        keys = self._count("Q", _MAX_KEYS, 13, "metadata keys")
        metadata: dict[str, Value] = {}
        for _ in range(keys):
            key = self._string(_MAX_NAME)
            if key in metadata:
                raise self._invalid(f"metadata key {key!r} appears twice")
            metadata[key] = self._value(self._number("I"))
        infos = [self._info() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 65_536 or alignment & (alignment - 1):
            raise self._invalid(f"general.alignment must be a power of two, got {alignment!r}")
        base = -(-self._at // alignment) * alignment
        placed = {info.name: self._place(info, base) for info in infos}
        if len(placed) != len(infos):
            raise self._invalid("two tensors have the same name")
        return GgufHeader(self._path, metadata, placed)

    def _invalid(self, cause: str) -> InvalidModel:
        return InvalidModel(f"{self._path}: {cause}")

    def _take(self, length: int) -> bytes:
        if length > self._size - self._at:
            raise self._invalid(f"truncated or damaged: {length} bytes wanted at {self._at}, the file ends at {self._size}")
        self._at += length
        return self._data[self._at - length : self._at]

    def _number(self, code: str) -> int:
        return int(struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0])

    def _count(self, code: str, most: int, least_bytes: int, what: str) -> int:
        count = self._number(code)
        if count > min(most, (self._size - self._at) // least_bytes):
            raise self._invalid(f"damaged: it claims {count} {what}, more than it can hold")
        return count

    def _string(self, most: int) -> str:
        length = self._number("Q")
        if length > most:
            raise self._invalid(f"damaged: a name or text of {length} bytes at {self._at}")
        # Token texts may be cut inside a character; nothing else that matters here is not UTF-8.
        return self._take(length).decode("utf-8", errors="surrogateescape")

    def _value(self, kind: int) -> Value:
        if kind in _SCALARS:
            code = "<" + _SCALARS[kind]
            value: Value = struct.unpack(code, self._take(struct.calcsize(code)))[0]
            return value
        if kind == _STRING:
            return self._string(self._size)
        if kind != _ARRAY:
            raise self._invalid(f"damaged: metadata of unknown type {kind}")
        inner = self._number("I")
        if inner == _STRING:
            return [self._string(self._size) for _ in range(self._count("Q", _MAX_ELEMENTS, 8, "texts in a list"))]
        if inner not in _SCALARS:
            raise self._invalid(f"lists of type {inner} are not supported")
        width = struct.calcsize("<" + _SCALARS[inner])
        count = self._count("Q", _MAX_ELEMENTS, width, "numbers in a list")
        return np.frombuffer(self._take(count * width), dtype=np.dtype("<" + _SCALARS[inner]))

    def _info(self) -> TensorInfo:
        name = self._string(_MAX_NAME)
        dims = self._number("I")
        if not 1 <= dims <= 4:
            raise self._invalid(f"tensor {name} has {dims} dimensions; 1 to 4 are possible")
        shape = tuple(self._number("Q") for _ in range(dims))[::-1]  # GGML counts the fastest dimension first
        return TensorInfo(name, shape, self._number("I"), self._number("Q"), 0)

    def _place(self, info: TensorInfo, base: int) -> TensorInfo:
        try:
            from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        except ImportError as error:
            raise InvalidConfig("GGUF files need the gguf package; run: pip install 'adaserve[text]'") from error
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(info.kind)]
        except (ValueError, KeyError):
            raise self._invalid(f"tensor {info.name} has unknown quantisation {info.kind}") from None
        elements = 1
        for dim in info.shape:
            if not 1 <= dim <= 2**40:
                raise self._invalid(f"tensor {info.name} has an impossible dimension {dim}")
            elements *= dim
        size = elements // block * block_bytes
        if info.shape[-1] % block:
            raise self._invalid(f"tensor {info.name}: rows of {info.shape[-1]} do not fill blocks of {block}")
        offset = base + info.offset
        if offset + size > self._size:
            raise self._invalid(f"truncated: tensor {info.name} ends at byte {offset + size}, the file at {self._size}")
        return TensorInfo(info.name, info.shape, info.kind, offset, size)
