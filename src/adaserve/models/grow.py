"""Function-preserving growth: a small checkpoint embedded in a large shape, whose logits stay those of the small one.

Large weights are not always to be had, but time and memory depend on the shape alone, and acceptance on the function. So a grown
model is as slow as a large one and drafts for it are accepted as often as for the small one. How the small model is embedded:

    residual stream  the first d of D dimensions; the others stay zero
    RMSNorm          the mean over D numbers is d / D of the small one: weights times sqrt(d / D), eps times d / D
    rotary pairs     pair i goes to pair i * hd / hd_small, the one that turns at the same frequency
    scores           divided by sqrt(hd) instead of sqrt(hd_small): queries times sqrt(hd / hd_small)
    KV groups        one that is wider than the large model's is copied to several KV heads
    layers           spread evenly over the depth

Whatever is new (heads, neurons, layers, dimensions that read zeros) holds random weights, and what it computes is multiplied by
zeros where it would enter the residual stream.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adaserve.errors import InvalidConfig, InvalidModel
from adaserve.models.config import ModelConfig
from adaserve.models.rope import FrequencyFactors
from adaserve.models.weights import EMBEDDING, HEAD, NORM, expected_shapes


@dataclass(frozen=True)
class Shape:
    """The size of a decoder, apart from vocabulary and context."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int


SHAPES = {
    "8b": Shape(4096, 32, 32, 8, 128, 14336),
    "32b": Shape(5120, 64, 40, 8, 128, 27648),
    "70b": Shape(8192, 80, 64, 8, 128, 28672),
}
"""The shapes of well-known models, by name."""


def grown_config(small: ModelConfig, shape: Shape) -> ModelConfig:
    """The config of `small` grown to `shape`. Raises InvalidConfig when it does not fit into it."""
    large = replace(
        small,
        hidden=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate=shape.intermediate,
        eps=small.eps * small.hidden / shape.hidden,
        tie_embeddings=False,
    )
    if small.qk_norm:
        raise InvalidConfig("a model with norms of queries and keys cannot be grown: their eps is that of the other norms")
    if shape.heads % shape.kv_heads:
        raise InvalidConfig(f"{shape.heads} heads are not a multiple of {shape.kv_heads} KV heads")
    if shape.head_dim % small.head_dim:
        raise InvalidConfig(f"head_dim {shape.head_dim} is not a multiple of the small model's {small.head_dim}")
    if isinstance(small.rope.scaling, FrequencyFactors):  # one for each pair; the pairs between are new
        factors = [f for f in small.rope.scaling.factors for _ in range(shape.head_dim // small.head_dim)]
        large = replace(large, rope=replace(small.rope, scaling=FrequencyFactors(tuple(factors))))
    copies = _copies(small, large)
    for name, least in (
        ("hidden", small.hidden),
        ("layers", small.layers),
        ("kv_heads", small.kv_heads * copies),
        ("intermediate", small.intermediate),
    ):
        if getattr(shape, name) < least:
            raise InvalidConfig(
                f"the shape's {name} must be at least {least} to hold the small model, got {getattr(shape, name)}"
            )
    return large


class GrownWeights(Mapping[str, Tensor]):
    """The tensors of a grown model, made one at a time when asked for: a large model needs no copy but the final one.

    small, weights: the model to be grown. config: what `grown_config` made. Tensors come on `device` in `dtype`; the random ones
    depend on `seed`, their name and the kind of device.
    """

    def __init__(
        self,
        small: ModelConfig,
        weights: Mapping[str, Tensor],
        config: ModelConfig,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        missing = sorted(set(expected_shapes(small)) - set(weights))
        if missing:
            raise InvalidModel(f"tensor {missing[0]} of the small model is missing")
        self._small = small
        self._weights = weights
        self._large = config
        self._dtype = dtype
        self._device = torch.device(device)
        self._seed = seed
        self._shapes = expected_shapes(config)
        # Small layer i of l stands in the middle of its share of the depth.
        depth, layers = config.layers, small.layers
        self._layer_of = {(2 * i + 1) * depth // (2 * layers): i for i in range(layers)}

    def __getitem__(self, name: str) -> Tensor:
        small, shape = self._small, self._shapes[name]
        if name == NORM:
            return self._norm(NORM)
        if name == EMBEDDING:
            return _placed(self._zeros(shape), self._read(EMBEDDING), slice(None))
        if name == HEAD:
            return _placed(self._random(name), self._read(EMBEDDING if small.tie_embeddings else HEAD), slice(None))
        _, _, index, part = name.split(".", 3)  # model.layers.<index>.<part>
        layer = self._layer_of.get(int(index))
        source = None if layer is None else f"model.layers.{layer}.{part}"
        if "layernorm" in part:
            return self._norm(source)
        writes = "o_proj" in part or "down_proj" in part  # to the residual stream
        whole = self._zeros(shape) if writes or part.endswith("bias") else self._random(name)
        return whole if source is None else self._embed(whole, self._read(source), part)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def _embed(self, whole: Tensor, part: Tensor, name: str) -> Tensor:
        """Write a small projection [out, in] or bias [out] to its place in the large one."""
        small, large = self._small, self._large
        if "q_proj" in name:
            whole.view(large.heads, large.head_dim, *whole.shape[1:])[self._query_heads()] = 0  # new dimensions add no score
            rows = self._query_heads()[:, None] * large.head_dim + self._pairs()
            return _placed(whole, part * (large.head_dim / small.head_dim) ** 0.5, rows.flatten())
        if "k_proj" in name or "v_proj" in name:
            copies = _copies(small, large)
            heads = torch.arange(small.kv_heads * copies, device=self._device)
            rows = heads[:, None] * large.head_dim + (self._pairs() if "k_proj" in name else self._plain())
            wide = part.view(small.kv_heads, small.head_dim, -1).repeat_interleave(copies, 0).view(-1, *part.shape[1:])
            return _placed(whole, wide, rows.flatten())
        if "o_proj" in name and part.dim() == 2:
            columns = self._query_heads()[:, None] * large.head_dim + self._plain()
            whole[: small.hidden, columns.flatten()] = part.to(whole.dtype)
            return whole
        return _placed(whole, part, slice(part.shape[0]))

    def _query_heads(self) -> Tensor:
        """Large head of every small query head.  # [H_small]"""
        group, wide = self._small.heads // self._small.kv_heads, self._large.heads // self._large.kv_heads
        head = torch.arange(self._small.heads, device=self._device)
        own, place = head // group, head % group  # the small KV head, and which of its queries
        return (own * _copies(self._small, self._large) + place // wide) * wide + place % wide

    def _plain(self) -> Tensor:
        """Dimensions of a head that is not rotated: the first ones.  # [hd_small]"""
        return torch.arange(self._small.head_dim, device=self._device)

    def _pairs(self) -> Tensor:
        """Large dimension of each dimension of a small rotated head: halves apart, frequencies kept.  # [hd_small]"""
        half = self._plain()[: self._small.head_dim // 2] * (self._large.head_dim // self._small.head_dim)
        return torch.cat((half, half + self._large.head_dim // 2))

    def _norm(self, source: str | None) -> Tensor:
        whole = torch.ones(self._large.hidden, dtype=self._dtype, device=self._device)
        if source is not None:
            whole[: self._small.hidden] = self._read(source) * (self._small.hidden / self._large.hidden) ** 0.5
        return whole

    def _read(self, name: str) -> Tensor:
        return self._weights[name].to(device=self._device, dtype=torch.promote_types(self._dtype, torch.float32))

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def _random(self, name: str) -> Tensor:
        shape = self._shapes[name]
        draw = torch.Generator(self._device).manual_seed(zlib.crc32(f"{self._seed} {name}".encode()))
        return torch.randn(shape, generator=draw, dtype=self._dtype, device=self._device).mul_(shape[-1] ** -0.5)


def _copies(small: ModelConfig, large: ModelConfig) -> int:
    """KV heads that each small KV head needs: its queries may be more than a large group holds."""
    return -(-(small.heads // small.kv_heads) // (large.heads // large.kv_heads))


def _placed(whole: Tensor, part: Tensor, rows: Tensor | slice) -> Tensor:
    """Write a small matrix [m, d] or bias [m] to the given rows of a large one, columns from the first on."""
    if part.dim() == 1:
        whole[rows] = part.to(whole.dtype)
    else:
        whole[rows, : part.shape[1]] = part.to(whole.dtype)
    return whole
