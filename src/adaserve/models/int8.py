"""Weights stored as int8, a scale for every 64 inputs: half the bytes of bfloat16, for drafts that travel in a package.

A matrix `name` [N, K] of int8 stands beside `name.scale` [N, K / 64] of bfloat16; a weight is their product. Everything else is
stored as it is. With a scale this local the error is 0.7% of a weight's own standard deviation, where one scale per row would
leave 4%: trained matrices have outliers.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from adaserve.errors import InvalidModel
from adaserve.kernels.quantized import BLOCK, QuantizedWeight

GROUP = 64
_SCALE = ".scale"


class Int8Weights(Mapping[str, Tensor]):
    """The tensors of a file in which matrices may be stored as int8; those come out as float32, the others as they are.

    label names the file in errors. Raises InvalidModel for int8 without a scale that fits.
    """

    def __init__(self, stored: Mapping[str, Tensor], label: str) -> None:
        self._stored = stored
        self._label = label
        self._names = tuple(name for name in stored if not name.endswith(_SCALE))

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._stored[name]
        if tensor.dtype != torch.int8:
            return tensor
        scale = self._scale(name, tensor)
        groups = tensor.view(*scale.shape, -1).float()  # [N, K / 64, 64]
        return (groups * scale.float()[..., None]).view_as(tensor)

    def blocks(self, name: str) -> QuantizedWeight | None:
        """A matrix as it is stored, where kernels take it: int8 in whole blocks, with scales that are float16 numbers too."""
        tensor = self._stored[name]
        if tensor.dtype != torch.int8:
            return None
        scale = self._scale(name, tensor)
        half = scale.half()
        times, rest = divmod(tensor.shape[1] // scale.shape[1], BLOCK)
        if rest or not torch.equal(half.float(), scale.float()):
            return None
        return QuantizedWeight(tensor, half.repeat_interleave(times, 1), None)

    def _scale(self, name: str, tensor: Tensor) -> Tensor:
        """The scales of an int8 matrix [N, K]: [N, K / 64]."""
        scale = self._stored.get(name + _SCALE)
        if scale is None or scale.dim() != 2 or tensor.dim() != 2 or scale.shape[0] != tensor.shape[0]:
            raise InvalidModel(f"{self._label}: tensor {name} is int8 and has no fitting {name}{_SCALE}; write the file again")
        if scale.shape[1] == 0 or tensor.shape[1] % scale.shape[1]:
            raise InvalidModel(f"{self._label}: tensor {name}: {scale.shape[1]} scales do not divide {tensor.shape[1]} columns")
        return scale

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def to_int8(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Round matrices to int8 for storing, everything else to bfloat16; `Int8Weights` reads them back."""
    stored: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if tensor.dim() != 2:
            stored[name] = tensor.to(torch.bfloat16)
            continue
        rows, columns = tensor.shape
        groups = tensor.float().reshape(rows, -1, GROUP if columns % GROUP == 0 else columns)  # [N, K / 64, 64]
        scale = (groups.abs().amax(-1) / 127).to(torch.bfloat16)  # [N, K / 64]
        steps = groups / scale.float().clamp(min=torch.finfo(torch.float32).tiny)[..., None]
        stored[name] = steps.round().clamp(-127, 127).to(torch.int8).view(rows, columns)
        stored[name + _SCALE] = scale
    return stored
