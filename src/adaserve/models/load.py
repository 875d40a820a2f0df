"""From a source on disk to a Decoder, and what can be said about a model without loading it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adaserve.errors import InvalidModel
from adaserve.kernels.quantized import QuantizedWeight
from adaserve.models.config import ModelConfig
from adaserve.models.decoder import Decoder
from adaserve.models.gguf import GgufWeights, gguf_config
from adaserve.models.gguf_header import read_header
from adaserve.models.int8 import Int8Weights
from adaserve.models.registry import Format, ModelSource
from adaserve.models.safetensors import SafetensorsFiles, folder_config, folder_weights
from adaserve.models.weights import assemble, draft_config
from adaserve.parallel.group import ALONE, Group
from adaserve.parallel.share import BlockReader


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, in words and numbers fit for a person. `bytes` is its size on disk."""

    name: str
    path: str
    format: str
    family: str
    parameters: int
    layers: int
    hidden: int
    vocab_size: int
    context: int
    bytes: int
    note: str | None

    def __str__(self) -> str:
        size = f"{self.parameters / 1e6:.0f}M" if self.parameters < 1e9 else f"{self.parameters / 1e9:.1f}B"
        line = f"{self.name}: {self.family}, {size} parameters, {self.layers} layers, context {self.context} ({self.format})"
        return line if self.note is None else f"{line}; {self.note}"


def describe(source: ModelSource) -> ModelInfo:
    """Read a model's config and file sizes only; raises as `load_decoder` does for a broken config."""
    config = read_config(source)
    files = source.path.glob("*.safetensors") if source.path.is_dir() else [source.path]
    return ModelInfo(
        name=source.name,
        path=str(source.path),
        format=source.format.value,
        family=config.family,
        parameters=config.parameters,
        layers=config.layers,
        hidden=config.hidden,
        vocab_size=config.vocab_size,
        context=config.max_positions,
        bytes=sum(file.stat().st_size for file in files),
        note=config.note,
    )


def read_config(source: ModelSource) -> ModelConfig:
    """Read a model's config; a file of draft layers has none of its own and raises InvalidModel."""
    match source.format:
        case Format.FOLDER:
            return folder_config(source.path)
        case Format.GGUF:
            return gguf_config(read_header(source.path))
        case Format.LAYERS:
            raise InvalidModel(f"{source.path}: holds layers only; it can be a draft, not a model of its own")


def load_decoder(
    source: ModelSource,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    positions: int | None = None,
    group: Group = ALONE,
) -> Decoder:
    """Load a whole model.

    dtype: of the weights in memory (float64, float32, bfloat16).
    positions: longest context to serve, capped at the model's; None for that.
    group: the ranks that share the model; this rank's share is loaded.
    Raises InvalidModel or ModelNotFound, in one line naming file and cause.
    """
    config, weights = open_model(source)
    length = config.max_positions if positions is None else min(positions, config.max_positions)
    return assemble(config, weights, str(source.path), dtype=dtype, device=device, positions=length, group=group)


def load_draft(source: ModelSource, target: Decoder, *, dtype: torch.dtype, owner: ModelSource | None = None) -> Decoder:
    """Load a draft model for a target, on the target's device and for its context.

    A file of layers only takes embedding, head and all of its shape from the target, sharing their memory. A whole model must
    have the target's vocabulary; where the target's context exceeds its own it drafts badly, which costs speed and nothing
    else. Raises InvalidModel for a draft that does not fit.

    owner: where the target comes from. One that ranks share has a part of its embedding and head; a draft, which is one rank's
    own, then has them read again, whole.
    """
    length = target.max_positions
    if source.format is Format.LAYERS:
        layers = Int8Weights(SafetensorsFiles([source.path]), str(source.path))
        lender = target
        if target.group.size > 1:
            if owner is None:
                raise InvalidModel(f"{source.path}: a draft of layers needs the source of a target that ranks share")
            lender = _ends(owner, dtype, target.device)
        config = draft_config(lender.config, layers, str(source.path))
        return assemble(config, layers, str(source.path), dtype=dtype, device=target.device, positions=length, lender=lender)
    config, weights = open_model(source)
    if config.vocab_size != target.config.vocab_size:
        sizes = f"{config.vocab_size} tokens, the target's {target.config.vocab_size}"
        raise InvalidModel(f"{source.path}: this draft does not fit: its vocabulary has {sizes}")
    return assemble(config, weights, str(source.path), dtype=dtype, device=target.device, positions=length)


def _ends(source: ModelSource, dtype: torch.dtype, device: torch.device) -> Decoder:
    """Embedding, norm and head of a model, as a decoder without layers: somebody to borrow from."""
    config, weights = open_model(source)
    return assemble(replace(config, layers=0), _Ends(weights), str(source.path), dtype=dtype, device=device, positions=1)


class _Ends(Mapping[str, Tensor]):
    """The weights outside of the layers."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self._names = tuple(name for name in weights if not name.startswith("model.layers."))

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name]

    def blocks(self, name: str) -> QuantizedWeight | None:
        """The matrix `name` in blocks, if it is stored so."""
        return self._weights.blocks(name) if isinstance(self._weights, BlockReader) else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_model(source: ModelSource) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    """A model's config, and its weights by name, read when asked for."""
    if source.format is Format.GGUF:
        header = read_header(source.path)
        return gguf_config(header), GgufWeights(header)
    return read_config(source), folder_weights(source.path)
