"""From a source on disk to a Decoder, and what can be said about a model without loading it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adaserve.errors import InvalidModel
from adaserve.models.config import ModelConfig
from adaserve.models.decoder import Decoder
from adaserve.models.gguf import GgufWeights, gguf_config
from adaserve.models.gguf_header import read_header
from adaserve.models.int8 import Int8Weights
from adaserve.models.registry import Format, ModelSource
from adaserve.models.safetensors import SafetensorsFiles, folder_config, folder_weights
from adaserve.models.weights import assemble, draft_config


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
    source: ModelSource, *, dtype: torch.dtype, device: torch.device | str = "cpu", positions: int | None = None
) -> Decoder:
    """Load a whole model.

    dtype: of the weights in memory (float64, float32, bfloat16).
    positions: longest context to serve, capped at the model's; None for that.
    Raises InvalidModel or ModelNotFound, in one line naming file and cause.
    """
    config, weights = open_model(source)
    length = config.max_positions if positions is None else min(positions, config.max_positions)
    return assemble(config, weights, str(source.path), dtype=dtype, device=device, positions=length)


def load_draft(source: ModelSource, target: Decoder, *, dtype: torch.dtype) -> Decoder:
    """Load a draft model for a target, on the target's device and for its context.

    A file of layers only takes embedding, head and all of its shape from the target, sharing their memory. A whole model must
    have the target's vocabulary; where the target's context exceeds its own it drafts badly, which costs speed and nothing
    else. Raises InvalidModel for a draft that does not fit.
    """
    length = target.max_positions
    if source.format is Format.LAYERS:
        layers = Int8Weights(SafetensorsFiles([source.path]), str(source.path))
        config = draft_config(target.config, layers, str(source.path))
        return assemble(config, layers, str(source.path), dtype=dtype, device=target.device, positions=length, lender=target)
    config, weights = open_model(source)
    if config.vocab_size != target.config.vocab_size:
        sizes = f"{config.vocab_size} tokens, the target's {target.config.vocab_size}"
        raise InvalidModel(f"{source.path}: this draft does not fit: its vocabulary has {sizes}")
    return assemble(config, weights, str(source.path), dtype=dtype, device=target.device, positions=length)


def open_model(source: ModelSource) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    """A model's config, and its weights by name, read when asked for."""
    if source.format is Format.GGUF:
        header = read_header(source.path)
        return gguf_config(header), GgufWeights(header)
    return read_config(source), folder_weights(source.path)
