"""The closed-form gradient is that of the loss, by automatic differentiation; the kernel is its twin."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.distill.gradient import loss, pull, pull_rows
from tests.devices import DEVICE, needs_triton


@given(
    seed=st.integers(0, 2**31),
    positions=st.integers(1, 9),
    vocabulary=st.integers(2, 40),
    chunk=st.integers(1, 10),
    greedy=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_pull_is_the_gradient_of_the_loss(seed: int, positions: int, vocabulary: int, chunk: int, greedy: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, positions, 6, generator=draw, dtype=torch.float64)
    head = torch.randn(vocabulary, 6, generator=draw, dtype=torch.float64)
    weight = torch.rand(positions, generator=draw, dtype=torch.float64)
    student.requires_grad_(True)
    loss(student, teacher, head, weight, greedy=greedy).backward()
    found = pull(student.detach(), teacher, head, weight, greedy=greedy, chunk=chunk)
    # pull takes its softmax in float32, whatever the states are
    torch.testing.assert_close(found.gradient, student.grad, atol=2e-6, rtol=2e-5)
    p, q = (teacher @ head.T).softmax(-1), (student.detach() @ head.T).softmax(-1)
    torch.testing.assert_close(found.distance, ((p - q).abs().sum(-1) / 2 * weight).sum(), atol=2e-6, rtol=2e-5)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [2, 100, 4096, 9001])
def test_kernel_equals_its_twin(vocabulary: int, dtype: torch.dtype) -> None:
    from adaserve.distill import triton_gradient

    draw = torch.Generator().manual_seed(vocabulary)
    student, teacher = (torch.randn(2, 5, vocabulary, generator=draw) * 4).to(dtype).to(DEVICE)
    teacher[1, vocabulary // 2] = teacher[1].max()  # two likeliest tokens: the first one counts
    expected = student.clone()
    distance = pull_rows(expected, teacher, 0.3)
    found = triton_gradient.pull_rows(student, teacher, 0.3)
    torch.testing.assert_close(found, distance, atol=1e-5, rtol=1e-4)
    atol, rtol = (1e-6, 1e-4) if dtype == torch.float32 else (1e-5, 1e-2)
    torch.testing.assert_close(student, expected, atol=atol, rtol=rtol)
