"""The writer's attention kernel equals its twin, on a GPU or in Triton's interpreter."""

import pytest
import torch

from adaserve.distill.lockstep import attend
from tests.devices import DEVICE, needs_triton


@needs_triton
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(9, 3, 64), (4, 4, 16), (6, 1, 12)])
@pytest.mark.parametrize("length", [1, 63, 70])
def test_kernel_equals_its_twin(heads: int, kv_heads: int, width: int, length: int) -> None:
    from adaserve.distill import triton_attention

    draw = torch.Generator().manual_seed(length)
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    query = torch.randn(2, heads, width, generator=draw).to(DEVICE, dtype)
    keys, values = torch.randn(2, 2, kv_heads, 80, width, generator=draw).to(DEVICE, dtype)
    keys[:, :, length:] = values[:, :, length:] = torch.nan  # what was not written yet must not be read
    found = triton_attention.attend(query, keys, values, length)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found, attend(query, keys, values, length), atol=tolerance, rtol=tolerance)
