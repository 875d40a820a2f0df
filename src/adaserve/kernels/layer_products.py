"""A layer's products, each with what stands before and after it, as one kernel on a GPU.

A layer of a narrow decoder reads its weights in a microsecond or two, and every kernel takes several, so fewer of them are what
counts. Elsewhere these are made of the other kernels' twins, and nobody calls them but tests: models/fused_layers.py.

    qkv    norm -> product (+ bias) -> per-head norms -> rotate -> store keys and values, give queries
    gate   norm -> product (+ bias) -> silu(gate) * up
    add    product (+ bias) -> (+) residual stream
"""

from torch import Tensor

from adaserve.kernels.gate import silu_mul_reference
from adaserve.kernels.gpu import on_gpu
from adaserve.kernels.linear import linear_reference
from adaserve.kernels.norm import rms_norm_reference
from adaserve.kernels.rotary import RotaryTable, rotate_and_store_reference


def normed_qkv_reference(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    table: RotaryTable,
    position: Tensor,
    dest: Tensor,
    keys: Tensor,
    values: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> Tensor:
    """The plain torch twin of `normed_qkv`."""
    qkv = linear_reference(rms_norm_reference(x, norm, eps), weight, bias)  # [M, (H + 2 KH) * hd]
    return rotate_and_store_reference(qkv, table, position, dest, keys, values, q_norm, k_norm, eps)


def normed_qkv(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    table: RotaryTable,
    position: Tensor,
    dest: Tensor,
    keys: Tensor,
    values: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> Tensor:
    """Norm the residual stream x [M, hidden], project, rotate, store keys and values at pool rows `dest`; queries [M, H, hd].

    norm [hidden]; weight [(H + 2 KH) * hd, hidden]; bias [(H + 2 KH) * hd]; the rest as of rotary.rotate_and_store.
    """
    if on_gpu(x):
        from adaserve.kernels import triton_layer

        numbers = table.cos, table.sin, position, dest
        return triton_layer.normed_qkv(x, norm, weight, bias, *numbers, keys, values, q_norm, k_norm, eps)
    return normed_qkv_reference(x, norm, weight, bias, table, position, dest, keys, values, q_norm, k_norm, eps)


def normed_gate_reference(x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """The plain torch twin of `normed_gate`."""
    return silu_mul_reference(linear_reference(rms_norm_reference(x, norm, eps), weight, bias))


def normed_gate(x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Norm x [M, hidden], project, silu(gate) * up: norm [hidden], weight [2 I, hidden], bias [2 I], gate first -> [M, I]."""
    if on_gpu(x):
        from adaserve.kernels import triton_layer

        return triton_layer.normed_gate(x, norm, weight, bias, eps)
    return normed_gate_reference(x, norm, weight, bias, eps)


def product_add_reference(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """The plain torch twin of `product_add`."""
    return linear_reference(x, weight, bias) + residual


def product_add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """Project x [M, K] and add it to the residual stream: weight [N, K], bias [N], residual [M, N] -> [M, N]."""
    if on_gpu(x):
        from adaserve.kernels import triton_layer

        return triton_layer.product_add(x, weight, bias, residual)
    return product_add_reference(x, weight, bias, residual)


MOST_ROWS = 64
"""For which it pays. Measured: a layer takes a fifth less time at 64 rows, and 3% less at 192 (docs/log.md)."""
WIDEST = 1024
"""Widest residual stream for which it is thought to pay: a program goes through all of it."""
LARGEST = 16 << 20
"""Most weights of a layer for which it is thought to pay: reading more than that takes longer than launching."""
STEP = 64
"""Widths must be multiples of it."""


def pays(hidden: int, heads: int, kv_heads: int, head_dim: int, intermediate: int) -> bool:
    """Whether layers of this shape fit the kernels, and are faster with them, for at most MOST_ROWS rows.

    Only SmolLM2-135M's shape was measured: 576 wide, 3.5 million weights a layer. The limits for others are guesses.
    """
    attention = (heads + 2 * kv_heads) * head_dim
    weights = hidden * (attention + heads * head_dim + 3 * intermediate)
    power = head_dim & (head_dim - 1) == 0
    fits = power and 16 <= head_dim <= 128 and all(width % STEP == 0 for width in (hidden, heads * head_dim, intermediate))
    return fits and hidden <= WIDEST and weights <= LARGEST


def plain(*tensors: Tensor) -> bool:
    """Whether a kernel can read these as they lie: of one dtype, one after another in memory."""
    return all(x.is_contiguous() and x.dtype == tensors[0].dtype for x in tensors)
