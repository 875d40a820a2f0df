"""One block of a decoder."""

from dataclasses import dataclass

from torch import Tensor

from adaserve.kernels.linear import Linear


@dataclass(frozen=True)
class Layer:
    """One transformer block. Projections that read the same input are fused, query first, gate first.

    qkv: hidden -> (H + 2 KH) * hd. gate_up: hidden -> 2 * intermediate. q_norm, k_norm [hd] exist in Qwen3 only.
    """

    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear

    def prepare(self) -> None:
        """Have the products' kernels compiled."""
        for product in (self.qkv, self.output, self.gate_up, self.down):
            product.prepare()
