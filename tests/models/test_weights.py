"""Assembling a decoder: what is missing, unknown or misshapen is refused; a draft of layers shares the target's embedding."""

import pytest
import torch
from torch import Tensor

from adaserve.errors import AdaServeError, InvalidConfig, InvalidModel
from adaserve.models.config import ModelConfig
from adaserve.models.decoder import Decoder
from adaserve.models.random import noisy_copy, random_weights, tiny_config
from adaserve.models.weights import EMBEDDING, HEAD, assemble, draft_config
from tests.models.checkpoints import run

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def build(config: ModelConfig, weights: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> Decoder:
    return assemble(config, weights, "here", dtype=dtype)


def refusal(
    error: type[AdaServeError], config: ModelConfig, weights: dict[str, Tensor], dtype: torch.dtype = torch.float64
) -> str:
    with pytest.raises(error) as caught:
        build(config, weights, dtype)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_any_missing_tensor_is_named(family: str) -> None:
    config = tiny_config(family)
    weights = random_weights(config, seed=0)
    for name in weights:
        rest = {key: value for key, value in weights.items() if key != name}
        assert refusal(InvalidModel, config, rest) == f"here: tensor {name} missing"


def test_several_missing_tensors_are_counted() -> None:
    config = tiny_config()
    assert refusal(InvalidModel, config, {}) == "here: tensor lm_head.weight and 20 more missing"


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_any_wrong_shape_is_named(family: str) -> None:
    config = tiny_config(family)
    weights = random_weights(config, seed=0)
    for name, tensor in weights.items():
        message = refusal(InvalidModel, config, weights | {name: tensor[:-1]})
        assert name in message
        assert str(list(tensor.shape)) in message


def test_a_weight_that_would_be_ignored_is_refused() -> None:
    config = tiny_config()
    weights = random_weights(config, seed=0)
    bias = "model.layers.0.self_attn.q_proj.bias"
    assert bias in refusal(InvalidModel, config, weights | {bias: torch.zeros(32)})
    build(config, weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})


def test_integers_are_no_weights() -> None:
    config = tiny_config()
    weights = random_weights(config, seed=0)
    assert "int8" in refusal(InvalidModel, config, weights | {HEAD: weights[HEAD].to(torch.int8)})


def test_other_dtypes_are_refused() -> None:
    assert "float16" in refusal(InvalidConfig, tiny_config(), random_weights(tiny_config(), seed=0), torch.float16)


def test_a_tied_head_is_the_embedding() -> None:
    config = tiny_config(tie_embeddings=True)
    weights = random_weights(config, seed=0)
    untied = random_weights(tiny_config(), seed=0) | weights
    expected = run(build(tiny_config(), untied | {HEAD: weights[EMBEDDING]}), TOKENS, [8])
    assert torch.equal(run(build(config, weights), TOKENS, [8]), expected)
    assert torch.equal(run(build(config, weights | {HEAD: untied[HEAD]}), TOKENS, [8]), expected), "a stray head is ignored"


def layers_only(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in weights.items()
        if name not in (EMBEDDING, HEAD) and ("layers." not in name or int(name.split(".")[2]) < layers)
    }


def test_a_draft_of_layers_borrows_embedding_and_head() -> None:
    config = tiny_config(layers=3)
    weights = random_weights(config, seed=0)
    target = build(config, weights)
    part = layers_only(weights, layers=1)
    small = draft_config(config, part, "draft")
    assert small.layers == 1
    draft = assemble(small, part, "draft", dtype=torch.float64, lender=target)
    assert draft.embedding.data_ptr() == target.embedding.data_ptr()
    assert draft.head is target.head
    whole = build(small, part | {name: weights[name] for name in (EMBEDDING, HEAD)})
    assert torch.equal(run(draft, TOKENS, [8]), run(whole, TOKENS, [8]))


def test_a_draft_with_gaps_is_refused() -> None:
    weights = random_weights(tiny_config(layers=3), seed=0)
    gap = {name: tensor for name, tensor in layers_only(weights, 3).items() if "layers.1." not in name}
    for broken in (gap, {}):
        with pytest.raises(InvalidModel, match="without gaps"):
            draft_config(tiny_config(), broken, "draft")


def test_a_draft_must_fit_its_lender() -> None:
    config = tiny_config()
    target = build(config, random_weights(config, seed=0))
    other = tiny_config(hidden=64)
    with pytest.raises(InvalidModel, match="width and vocabulary"):
        assemble(other, layers_only(random_weights(other, seed=0), 2), "draft", dtype=torch.float64, lender=target)
    with pytest.raises(InvalidConfig, match="share the embedding"):
        assemble(config, layers_only(random_weights(config, seed=0), 2), "draft", dtype=torch.float32, lender=target)


def test_random_weights_are_a_function_of_the_seed() -> None:
    config = tiny_config()
    one, same, other = (random_weights(config, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_scale_is_the_spread_of_the_logits(family: str, tied: bool) -> None:
    config = tiny_config(family, tie_embeddings=tied)
    for scale in (1.0, 4.0):
        logits = run(build(config, random_weights(config, seed=3, scale=scale)), TOKENS, [8])
        assert 0.6 * scale < logits.std() < 1.7 * scale


def test_random_models_listen_to_the_context() -> None:
    config = tiny_config()
    model = build(config, random_weights(config, seed=0, scale=2.0))
    one, other = run(model, [1, 2, 3, 4], [4])[-1], run(model, [7, 8, 9, 4], [4])[-1]
    assert (one - other).std() > 0.5


def test_noise_makes_a_copy_disagree_by_degrees() -> None:
    config = tiny_config()
    weights = random_weights(config, seed=0, scale=2.0)
    tokens = torch.randint(100, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    exact = run(build(config, weights), tokens, [64]).argmax(-1)

    def agreement(noise: float) -> float:
        return (run(build(config, noisy_copy(weights, noise, seed=1)), tokens, [64]).argmax(-1) == exact).double().mean().item()

    assert agreement(0.0) == 1
    assert 0.5 < agreement(0.1) < 1
    assert agreement(3.0) < 0.3
