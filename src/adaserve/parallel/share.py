"""Share: which part of a model one rank holds, and how it is read.

    q, k, v       by heads: rank r has its H / size query heads and the KH / size key-value heads that they read
    gate, up      by neurons
    output, down  by columns, those that this rank's heads and neurons feed; the ranks' results are summed, so rank 0 has the bias
    embedding,    by tokens, with zeros where the last ranks' shares end after the vocabulary
    head
    norms         whole

So a layer needs two sums, after `output` and after `down`. A rank's KV pool holds its own key-value heads.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import pad

from adaserve.errors import InvalidConfig, InvalidModel
from adaserve.kernels.quantized import BLOCK, QuantizedWeight
from adaserve.models.config import ModelConfig

_BY_ROWS = (".q_proj.", ".k_proj.", ".v_proj.", ".gate_proj.", ".up_proj.")
_BY_COLUMNS = (".o_proj.", ".down_proj.")
_BY_TOKENS = ("model.embed_tokens.weight", "lm_head.weight")
_ROUND = 16
"""Tokens of a share are a multiple of this, as kernels like them."""


@runtime_checkable
class PartReader(Protocol):
    """Weights by name of which a part can be read without the rest."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        ...

    def part(self, name: str, dim: int, start: int, stop: int) -> Tensor:
        """Rows (dim 0) or columns (dim 1) [start, stop) of a tensor."""
        ...


@runtime_checkable
class BlockReader(Protocol):
    """Weights by name that can tell in which blocks a matrix is stored; None where it is in none that kernels take."""

    def blocks(self, name: str) -> QuantizedWeight | None:
        """The matrix `name` in blocks."""
        ...


@dataclass(frozen=True)
class Cut:
    """Rows (dim 0) or columns (dim 1) [start, stop) of a tensor, and how many zeros follow."""

    dim: int
    start: int
    stop: int
    zeros: int = 0


@dataclass(frozen=True)
class Share:
    """What rank `rank` of `size` holds of a model. Raises InvalidConfig for sizes that do not divide it."""

    whole: ModelConfig
    rank: int
    size: int

    def __post_init__(self) -> None:
        if self.size not in possible_sizes(self.whole):
            sizes = ", ".join(map(str, possible_sizes(self.whole)))
            shape = f"{self.whole.kv_heads} key-value heads and {self.whole.intermediate} neurons"
            raise InvalidConfig(f"tensor_parallel_size {self.size} does not divide the model's {shape}: use one of {sizes}")

    @property
    def tokens(self) -> int:
        """Rows of a share of embedding and head."""
        rows = -(-self.whole.vocab_size // self.size)
        return rows if self.size == 1 else -(-rows // _ROUND) * _ROUND

    @property
    def config(self) -> ModelConfig:
        """The shape of the share, as if it were a model: its tensors' shapes follow from it."""
        whole, size = self.whole, self.size
        return replace(
            whole,
            heads=whole.heads // size,
            kv_heads=whole.kv_heads // size,
            intermediate=whole.intermediate // size,
            vocab_size=self.tokens,
        )

    def cut(self, name: str, shape: tuple[int, ...]) -> Cut | None:
        """What this rank has of a tensor of that shape; None for all of it."""
        if name in _BY_TOKENS:
            start, stop = (min(shape[0], r * self.tokens) for r in (self.rank, self.rank + 1))
            return Cut(0, start, stop, self.tokens - (stop - start))
        dim = 0 if any(part in name for part in _BY_ROWS) else 1 if any(part in name for part in _BY_COLUMNS) else None
        if dim is None or dim >= len(shape):
            return None
        each = shape[dim] // self.size
        return Cut(dim, self.rank * each, (self.rank + 1) * each)


def possible_sizes(config: ModelConfig) -> list[int]:
    """Numbers of ranks that a model can be divided by."""
    return [s for s in range(1, config.kv_heads + 1) if config.kv_heads % s == 0 and config.intermediate % s == 0]


class ShareWeights(Mapping[str, Tensor]):
    """One rank's share of named tensors, of which no more is read than that where their source allows it.

    shapes: of the whole model's tensors. label: names the source in errors; raises InvalidModel for another shape.
    """

    def __init__(self, weights: Mapping[str, Tensor], share: Share, shapes: Mapping[str, tuple[int, ...]], label: str) -> None:
        self._weights = weights
        self._share = share
        self._shapes = shapes
        self._label = label

    def __getitem__(self, name: str) -> Tensor:
        expected = self._shapes[name]
        cut = self._share.cut(name, expected)
        if cut is not None and isinstance(self._weights, PartReader):
            self._check(name, self._weights.shape(name))
            part = self._weights.part(name, cut.dim, cut.start, cut.stop)
            return _padded(part, cut.zeros)
        whole = self._weights[name]
        self._check(name, tuple(whole.shape))
        if cut is not None:
            # Not a view, which would keep the whole in memory.
            return _padded(whole.narrow(cut.dim, cut.start, cut.stop - cut.start), cut.zeros).clone()
        # The ranks' results are summed, so a bias is added by one of them.
        elsewhere = self._share.rank > 0 and name.endswith(".bias") and any(part in name for part in _BY_COLUMNS)
        return torch.zeros_like(whole) if elsewhere else whole

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if shape != self._shapes[name]:
            shapes = f"{list(shape)}, the config asks for {list(self._shapes[name])}"
            raise InvalidModel(f"{self._label}: tensor {name} has shape {shapes}")

    def blocks(self, name: str) -> QuantizedWeight | None:
        """A matrix in blocks, as the source holds it; None where a rank's columns do not begin and end with blocks."""
        found = self._weights.blocks(name) if isinstance(self._weights, BlockReader) else None
        if found is None or tuple(found.shape) != self._shapes.get(name):
            return None
        cut = self._share.cut(name, tuple(found.shape))
        if cut is None:
            return found
        count = cut.stop - cut.start
        if cut.dim == 0:
            return found.over_rows(lambda rows: _padded(rows.narrow(0, cut.start, count), cut.zeros).clone())
        if cut.start % BLOCK or cut.stop % BLOCK:
            return None
        first, blocks = cut.start // BLOCK, count // BLOCK
        offset = None if found.offset is None else found.offset.narrow(1, first, blocks).clone()
        return QuantizedWeight(
            found.codes.narrow(1, cut.start, count).clone(), found.scale.narrow(1, first, blocks).clone(), offset
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def _padded(rows: Tensor, zeros: int) -> Tensor:
    """[N, ...] with rows of zeros below."""
    return pad(rows, (*(0, 0) * (rows.dim() - 1), 0, zeros)) if zeros else rows
