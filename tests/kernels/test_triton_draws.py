"""The Triton kernels over vocabularies equal their torch twins, on a GPU or in Triton's interpreter."""

import pytest
import torch

from adaserve.kernels.gumbel import perturbed_argmax_twin
from adaserve.kernels.perturb import perturb_reference
from adaserve.kernels.top import top_tokens_reference
from adaserve.runtime.noise import noise_key, noise_key_reference
from tests.devices import DEVICE, needs_triton

pytestmark = needs_triton
VOCABULARIES = [2, 100, 2048, 5003]


@pytest.fixture(scope="module")
def kernels():
    from adaserve.kernels import triton_draws

    return triton_draws


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_draws(kernels, vocabulary: int, dtype: torch.dtype) -> None:
    """The noise is the keyed noise, so the tokens are the same ones, not only of the same distribution."""
    rows = 12
    draw = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(rows, vocabulary, generator=draw).to(dtype).to(DEVICE) * 2
    temperature = torch.tensor([0.0, 0.3, 1.0, 2.0] * 3, dtype=torch.float64, device=DEVICE)
    words = [torch.randint(-(2**62), 2**62, (rows,), generator=draw).to(DEVICE) for _ in range(3)]
    found = kernels.perturbed_argmax(logits, temperature, noise_key(*words))
    assert torch.equal(found, perturbed_argmax_twin(logits, temperature, *words))


@pytest.mark.parametrize("shape", [(0,), (1,), (300,), (4, 33), (3, 2, 5)])
def test_keys(kernels, shape: tuple[int, ...]) -> None:
    """To the bit; seeds and choices of the whole shape, or of its last dimension."""
    draw = torch.Generator().manual_seed(len(shape))
    position = torch.randint(-(2**63), 2**63 - 1, shape, generator=draw).to(DEVICE)
    for of in (shape, shape[-1:]):
        seed, choice = torch.randint(-(2**63), 2**63 - 1, (2, *of), generator=draw).to(DEVICE)
        assert torch.equal(kernels.noise_key(seed, choice, position), noise_key_reference(seed, choice, position))
    if position.numel() > 1:
        with pytest.raises(ValueError, match="do not fit"):
            kernels.noise_key(seed[:1], choice, position)


def test_draws_of_sick_rows(kernels) -> None:
    """A row with NaN or +inf gives their place, one of nothing a valid token: the caller looks at that token's logit."""
    logits = torch.zeros(4, 3000)
    logits[0, 2500] = torch.nan
    logits[1, 7] = torch.inf
    logits[2] = -torch.inf
    logits[3, 2999] = 5.0
    logits = logits.to(DEVICE)
    for heat in (0.0, 1e-3):
        token = kernels.perturbed_argmax(logits, torch.full((4,), heat).double().to(DEVICE), torch.arange(4, device=DEVICE))
        assert token.tolist()[:2] == [2500, 7] and token[3] == 2999 and 0 <= token[2] < 3000


def test_ties_go_to_the_lower_id(kernels) -> None:
    logits = torch.zeros(1, 7000, device=DEVICE)
    logits[0, [2047, 2048, 6000]] = 1.0
    zero = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    assert kernels.perturbed_argmax(logits, zero.double(), zero).item() == 2047
    token, _ = kernels.top_tokens(logits, zero.double() + 1, 4)
    assert token.tolist() == [[2047, 2048, 6000, 0]]


@pytest.mark.parametrize("width", [1, 2, 7, 16])
@pytest.mark.parametrize("vocabulary", [16, 100, 2048, 5003])
def test_likeliest(kernels, vocabulary: int, width: int) -> None:
    draw = torch.Generator().manual_seed(width)
    logits = (torch.randn(6, vocabulary, generator=draw) * 4).to(DEVICE)
    inverse = torch.tensor([1.0, 0.5, 3.0, 1.0, 10.0, 1.0], dtype=torch.float64, device=DEVICE)
    token, log_prob = kernels.top_tokens(logits, inverse, width)
    expected, expected_log_prob = top_tokens_reference(logits, inverse, width)
    assert torch.equal(token, expected)
    torch.testing.assert_close(log_prob, expected_log_prob, rtol=1e-4, atol=1e-5)


def test_likeliest_of_sick_rows(kernels) -> None:
    logits = torch.randn(4, 3000, generator=torch.Generator().manual_seed(0))
    logits[0, 5] = torch.nan
    logits[1, 2900] = torch.inf
    logits[2] = -torch.inf
    logits[3, 1:] = -torch.inf
    logits = logits.to(DEVICE)
    one = torch.ones(4, dtype=torch.float64, device=DEVICE)
    token, log_prob = kernels.top_tokens(logits, one, 3)
    expected, expected_log_prob = top_tokens_reference(logits, one, 3)
    assert ((token >= 0) & (token < 3000)).all()
    possible = expected_log_prob > -torch.inf
    assert torch.equal(log_prob > -torch.inf, possible)
    assert torch.equal(token[possible], expected[possible])
    torch.testing.assert_close(log_prob[possible], expected_log_prob[possible], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [2, 2048, 5003])
def test_noise(kernels, vocabulary: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(7, vocabulary + 3, generator=draw).to(dtype).to(DEVICE)[:, :vocabulary]
    heat = torch.tensor([0.0, 0.3, 1.0, 2.0, 1.0, 1.0, 0.0], dtype=torch.float64, device=DEVICE)
    key = torch.randint(-(2**62), 2**62, (7,), generator=draw).to(DEVICE)
    found, expected = kernels.perturb(logits, heat, key), perturb_reference(logits, heat, key)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
