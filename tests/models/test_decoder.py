"""The one decoder equals transformers' own model of every family."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from adaserve.models.load import load_decoder
from adaserve.models.random import random_weights, tiny_config
from adaserve.models.registry import resolve
from adaserve.models.weights import assemble
from tests.models.checkpoints import FAMILIES, huggingface_model, run

TOKENS = torch.randint(100, (20,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A transformers model and the folder that it was saved to."""
    model = huggingface_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


def in_true_float64(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make transformers compute norms and rotary angles in float64: it uses float32 for them, whatever the model's dtype."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            weight, eps = module.weight, module.variance_epsilon
            monkeypatch.setattr(module, "forward", partial(torch.rms_norm, normalized_shape=weight.shape, weight=weight, eps=eps))
    rotary = model.model.rotary_emb
    kind = rotary.rope_type
    head_dim = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    parameters = model.config.rope_parameters
    frequency = parameters["rope_theta"] ** -(torch.arange(0, head_dim, 2).double() / head_dim)  # [hd / 2]
    if kind == "linear":
        frequency = frequency / parameters["factor"]
    elif kind == "llama3":  # piecewise, as transformers words it
        length = 2 * torch.pi / frequency
        original, low, high = (parameters[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
        smooth = (original / length - low) / (high - low)
        blend = (1 - smooth) * frequency / parameters["factor"] + smooth * frequency
        scaled = torch.where(length > original / low, frequency / parameters["factor"], blend)
        frequency = torch.where(length < original / high, frequency, scaled)

    def forward(x: torch.Tensor, position_ids: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        angle = position_ids[..., None].double() * frequency  # [1, L, hd / 2]
        both = torch.cat((angle, angle), dim=-1)
        return both.cos(), both.sin()

    torch.testing.assert_close(frequency, rotary.inv_freq.double(), rtol=1e-6, atol=0)
    monkeypatch.setattr(rotary, "forward", forward)


def test_logits_equal_transformers(pair: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = pair
    in_true_float64(model, monkeypatch)
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0]  # [L, V]
    decoder = load_decoder(resolve(str(folder)), dtype=torch.float64)
    assert expected.std() > 0.1
    for pieces in ([20], [1] * 20, [5, 1, 14]):
        actual = run(decoder, TOKENS, pieces)
        assert actual.dtype == torch.float64
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def test_logits_equal_untouched_transformers_up_to_float32_norms_and_angles(pair: tuple[Any, Path]) -> None:
    model, folder = pair
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0]
    actual = run(load_decoder(resolve(str(folder)), dtype=torch.float64), TOKENS, [20])
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_lower_precision_stays_close(pair: tuple[Any, Path], dtype: torch.dtype, bound: float) -> None:
    _, folder = pair
    exact = run(load_decoder(resolve(str(folder)), dtype=torch.float64), TOKENS, [20])
    decoder = load_decoder(resolve(str(folder)), dtype=dtype)
    rough = run(decoder, TOKENS, [20])
    assert decoder.embedding.dtype == dtype
    assert rough.dtype == decoder.dtype == torch.float32
    assert (rough - exact).square().mean().sqrt() < bound * exact.std()


def test_slots_do_not_see_each_other(pair: tuple[Any, Path]) -> None:
    from tests.batches import causal_batch

    _, folder = pair
    decoder = load_decoder(resolve(str(folder)), dtype=torch.float64)
    alone = [run(decoder, TOKENS[:length], [length]) for length in (9, 4)]
    pool = decoder.new_pool(pages=9, page_size=4, slots=3)
    batch = causal_batch([(2, TOKENS[:9], 0), (0, TOKENS[:4], 0)], slots=3, pages_per_slot=3, page_size=4)
    together = decoder.logits(decoder.forward(batch, pool))
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


def test_context_is_limited_by_the_window_and_by_request(tmp_path: Path) -> None:
    huggingface_model("mistral-window").save_pretrained(tmp_path)
    source = resolve(str(tmp_path))
    assert load_decoder(source, dtype=torch.float32).max_positions == 64
    assert load_decoder(source, dtype=torch.float32, positions=16).max_positions == 16
    assert load_decoder(source, dtype=torch.float32, positions=4096).max_positions == 64


def test_what_is_compiled_at_start_waits_for_no_other_rank() -> None:
    """Rank 0 prepares before it calls the others: a collective there would wait for ever."""

    class Silent:
        rank, size = 0, 2

        def sum_norm(self, *rows: object) -> tuple[torch.Tensor, torch.Tensor]:
            raise AssertionError("nobody else is there yet")

        def prepare(self, weight: torch.Tensor, dtype: torch.dtype, eps: float) -> None:
            return

        def join(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("nobody else is there yet")

    config = tiny_config()
    replace(assemble(config, random_weights(config, 0), "target", dtype=torch.float64), group=Silent()).prepare()
