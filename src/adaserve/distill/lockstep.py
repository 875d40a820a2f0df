"""Decoding in lockstep: all rows have the same length at any time, so no row needs padding, and no attention a mask."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from adaserve.distill.networks import Network, logits


class Lockstep:
    """One decoding step for rows that all have the same length, over keys and values in plain tensors."""

    def __init__(self, target: Network, rows: int, length: int) -> None:
        config, self._target, self._at = target.config, target, 0
        shape = (config.layers, rows, config.kv_heads, length, config.head_dim)
        dtype = target.embedding.dtype
        self._keys = torch.empty(shape, dtype=dtype, device=target.device)  # [layers, n, KH, T, hd]
        self._values = torch.empty(shape, dtype=dtype, device=target.device)  # [layers, n, KH, T, hd]
        self._attend = _attention_on(target.device)

    def __call__(self, token: Tensor) -> Tensor:
        """Read a token [n] of every row; returns the logits after it [n, V]."""
        body, config, at = self._target.body, self._target.config, self._at
        rows = token.shape[0]
        residual = functional.embedding(token, self._target.embedding)  # [n, hidden]
        position = torch.full((1, 1), at, dtype=torch.long, device=token.device)
        cos, sin = (angle[0, 0] for angle in body.rotary_emb(residual[:1, None], position))  # [hd] each
        for layer, keys, values in zip(body.layers, self._keys, self._values, strict=True):
            attention = layer.self_attn
            x = layer.input_layernorm(residual)
            q = attention.q_proj(x).view(rows, config.heads, config.head_dim)
            k = attention.k_proj(x).view(rows, config.kv_heads, config.head_dim)
            if config.qk_norm:
                q, k = attention.q_norm(q), attention.k_norm(k)
            keys[:, :, at] = _rotate(k, cos, sin)
            values[:, :, at] = attention.v_proj(x).view(rows, config.kv_heads, config.head_dim)
            attended = self._attend(_rotate(q, cos, sin), keys, values, at + 1)  # [n, H, hd]
            residual = residual + attention.o_proj(attended.reshape(rows, -1))
            residual = residual + layer.mlp(layer.post_attention_layernorm(residual))
        self._at += 1
        return logits(body.norm(residual), self._target.head)


def attend(query: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    """Attend from the only query of every head, [n, H, hd], to the first `length` keys of [n, KH, T, hd].  # [n, H, hd]

    The query heads of a KV group stand as so many rows of one head, so that attention reads every key once.
    """
    rows, heads, width = query.shape
    grouped = query.view(rows, keys.shape[1], -1, width)  # [n, KH, H / KH, hd]
    attended = functional.scaled_dot_product_attention(grouped, keys[:, :, :length], values[:, :, :length])
    return attended.reshape(rows, heads, width)


def _attention_on(device: torch.device) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    if device.type != "cuda":
        return attend
    from adaserve.distill import triton_attention

    return triton_attention.attend


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
