"""A draft for a model that has none: the model itself with noise on its weights.

As slow as its target, so of no use but to record acceptance from: it stands in for a draft that mostly agrees.
"""

import torch

from adaserve.models.decoder import Decoder
from adaserve.models.load import open_model
from adaserve.models.random import noisy_copy
from adaserve.models.registry import ModelSource
from adaserve.models.weights import EMBEDDING, HEAD, assemble


def noisy_draft(source: ModelSource, target: Decoder, noise: float, seed: int, *, dtype: torch.dtype) -> Decoder:
    """Load the target's model once more, with Gaussian noise of `noise` times its own standard deviation on each layer's matrix.

    source: where `target` came from; its embedding and head are shared, its norms kept as they are.
    """
    config, weights = open_model(source)
    layers = {name: weights[name].float() for name in weights if name not in (EMBEDDING, HEAD)}
    matrices = noisy_copy({name: tensor for name, tensor in layers.items() if tensor.dim() == 2}, noise, seed)
    return assemble(
        config,
        layers | matrices,
        str(source.path),
        dtype=dtype,
        device=target.device,
        positions=target.max_positions,
        lender=target,
    )
