"""From named tensors to a Decoder: what must be there, of which shape, and how it is fused.

Names are Hugging Face's. Where tensors come from (a folder, a GGUF file, a generator) is the business of a Mapping.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from adaserve.errors import InvalidConfig, InvalidModel
from adaserve.kernels.linear import Linear
from adaserve.kernels.quantized import QuantizedWeight, stack
from adaserve.models.config import ModelConfig
from adaserve.models.decoder import Decoder
from adaserve.models.layer import Layer
from adaserve.parallel.group import ALONE, Group
from adaserve.parallel.share import BlockReader, Share, ShareWeights

WEIGHT_DTYPES = (torch.float64, torch.float32, torch.bfloat16)

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model with this config; a tied head is not listed."""
    hidden, wide, q, kv = config.hidden, config.intermediate, config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden), NORM: (hidden,)}
    if not config.tie_embeddings:
        shapes[HEAD] = (config.vocab_size, hidden)
    for index in range(config.layers):
        layer = f"model.layers.{index}."
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
        for name, rows, columns, bias in (
            ("self_attn.q_proj", q, hidden, config.qkv_bias),
            ("self_attn.k_proj", kv, hidden, config.qkv_bias),
            ("self_attn.v_proj", kv, hidden, config.qkv_bias),
            ("self_attn.o_proj", hidden, q, config.output_bias),
            ("mlp.gate_proj", wide, hidden, config.mlp_bias),
            ("mlp.up_proj", wide, hidden, config.mlp_bias),
            ("mlp.down_proj", hidden, wide, config.mlp_bias),
        ):
            shapes[f"{layer}{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{layer}{name}.bias"] = (rows,)
        if config.qk_norm:
            shapes[layer + "self_attn.q_norm.weight"] = (config.head_dim,)
            shapes[layer + "self_attn.k_norm.weight"] = (config.head_dim,)
    return shapes


def draft_config(target: ModelConfig, weights: Mapping[str, Tensor], label: str) -> ModelConfig:
    """The config of a draft file that holds only layers and norm: the target's shape, with as many layers as the file has."""
    indices = {name.split(".")[2] for name in weights if name.startswith("model.layers.")}
    if not indices or indices != {str(index) for index in range(len(indices))}:
        raise InvalidModel(f"{label}: a draft file must hold layers model.layers.0 to model.layers.N without gaps")
    return replace(target, layers=len(indices))


def assemble(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    label: str,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    positions: int | None = None,
    lender: Decoder | None = None,
    group: Group = ALONE,
) -> Decoder:
    """Build a decoder from named tensors.

    label: names the source in errors.
    dtype: of the weights in memory: float64, float32 or bfloat16. On a CPU, activations of a bfloat16 model are float32.
    positions: longest context to serve; None for the config's. Beyond that one a model works, but not well.
    lender: a decoder of the same width and vocabulary whose embedding and head are used, without a copy, instead of own ones.
    group: the ranks that share the model; only this rank's share of the tensors is kept. One that borrows is not shared.
    Raises InvalidModel for a tensor that is missing, unknown or of the wrong shape, InvalidConfig for another dtype, and for a
    model that so many ranks cannot share.
    """
    if dtype not in WEIGHT_DTYPES:
        raise InvalidConfig(f"dtype {dtype} is not supported; these are: float64, float32, bfloat16")
    _check_names(config, weights, label, lender is not None)
    if lender is not None and (lender.config.hidden, lender.config.vocab_size) != (config.hidden, config.vocab_size):
        raise InvalidModel(f"{label}: width and vocabulary must be the target's to share its embedding")
    vocabulary = config.vocab_size
    if group.size > 1:
        share = Share(config, group.rank, group.size)
        config, weights = share.config, ShareWeights(weights, share, expected_shapes(config), label)
    loader = _Loader(config, weights, label, dtype, torch.device(device))
    activation = torch.float64 if dtype == torch.float64 else torch.float32 if loader.device.type == "cpu" else dtype
    if lender is not None and lender.dtype != activation:
        raise InvalidConfig(f"a draft of {dtype} cannot share the embedding of a target that computes in {lender.dtype}")
    layers = tuple(loader.layer(f"model.layers.{index}.", activation) for index in range(config.layers))
    norm = loader.tensor(NORM).to(activation)
    if lender is not None:
        embedding, head = lender.embedding, lender.head
    else:
        embedding = loader.tensor(EMBEDDING)
        head = loader.linear(False, (EMBEDDING if config.tie_embeddings else HEAD).removesuffix(".weight"))
    length = config.max_positions if positions is None else positions
    angles = torch.promote_types(activation, torch.float32)
    table = config.rope.table(head_dim=config.head_dim, positions=length, dtype=angles, device=device)
    return Decoder(replace(config, vocab_size=vocabulary), embedding, layers, norm, head, table, activation, group)


def _check_names(config: ModelConfig, weights: Mapping[str, Tensor], label: str, borrows: bool) -> None:
    expected = set(expected_shapes(config)) - ({EMBEDDING, HEAD} if borrows else set())
    missing = sorted(expected - set(weights))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InvalidModel(f"{label}: tensor {missing[0]}{more} missing")
    # Old checkpoints carry the rotary frequencies; a tied head may be written out too. Anything else would be ignored weights.
    unknown = sorted(
        name for name in set(weights) - expected if not name.endswith("rotary_emb.inv_freq") and name not in (EMBEDDING, HEAD)
    )
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise InvalidModel(f"{label}: tensor {unknown[0]}{more} unknown to a {config.family} model of this config")


class _Loader:
    """Reads, checks, converts and fuses; the device gets each tensor once, in its final dtype."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], label: str, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.device = device
        self._config = config
        self._weights = weights
        self._label = label
        self._dtype = dtype
        self._shapes = expected_shapes(config)

    def tensor(self, *names: str) -> Tensor:
        """Read tensors and stack their rows."""
        parts = []
        for name in names:
            part = self._weights[name]
            if tuple(part.shape) != self._shapes[name]:
                shapes = f"{list(part.shape)}, the config asks for {list(self._shapes[name])}"
                raise InvalidModel(f"{self._label}: tensor {name} has shape {shapes}")
            if not part.dtype.is_floating_point or part.dtype.itemsize < 2:
                raise InvalidModel(f"{self._label}: tensor {name} has dtype {part.dtype}, which is not supported")
            parts.append(part.to(self._dtype))
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole.to(self.device).contiguous()

    def linear(self, has_bias: bool, *names: str) -> Linear:
        """Fuse projections of the same input, `NAME.weight` and `NAME.bias`, into one."""
        weights = [f"{name}.weight" for name in names]
        bias = self.tensor(*(f"{name}.bias" for name in names)) if has_bias else None
        return Linear(self.blocks(*weights) or self.tensor(*weights), bias)

    def blocks(self, *names: str) -> QuantizedWeight | None:
        """Matrices in blocks, their rows stacked, where all are stored so and a CPU is to multiply by them.

        bfloat16 is asked for where speed matters more than the last digit, so it stands for blocks too; wider dtypes do not.
        """
        if not isinstance(self._weights, BlockReader) or self._dtype != torch.bfloat16 or self.device.type != "cpu":
            return None
        found = [self._weights.blocks(name) for name in names]
        parts = [part for part in found if part is not None]
        fit = len(parts) == len(names) and all(tuple(p.shape) == self._shapes[n] for p, n in zip(parts, names, strict=True))
        return stack(parts) if fit else None  # what does not fit is refused where it is read as a tensor

    def layer(self, prefix: str, activation: torch.dtype) -> Layer:
        """Read one block. Norms are few and cheap, so they are kept in the activations' dtype."""
        config, attention, mlp = self._config, prefix + "self_attn.", prefix + "mlp."
        return Layer(
            input_norm=self.tensor(prefix + "input_layernorm.weight").to(activation),
            qkv=self.linear(config.qkv_bias, attention + "q_proj", attention + "k_proj", attention + "v_proj"),
            q_norm=self.tensor(attention + "q_norm.weight").to(activation) if config.qk_norm else None,
            k_norm=self.tensor(attention + "k_norm.weight").to(activation) if config.qk_norm else None,
            output=self.linear(config.output_bias, attention + "o_proj"),
            mlp_norm=self.tensor(prefix + "post_attention_layernorm.weight").to(activation),
            gate_up=self.linear(config.mlp_bias, mlp + "gate_proj", mlp + "up_proj"),
            down=self.linear(config.mlp_bias, mlp + "down_proj"),
        )
