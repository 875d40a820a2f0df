"""The modules that are trained compute what our own decoder computes, and a draft is made of a target's own layers."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.distill.networks import draft_weights, load_network, logits, make_draft, spread_layers
from adaserve.errors import InvalidConfig, InvalidModel
from adaserve.models.random import random_weights, tiny_config
from adaserve.models.rope import Llama3Scaling, Rope
from adaserve.models.weights import EMBEDDING, HEAD, NORM, assemble
from tests.models.checkpoints import run

CPU = torch.device("cpu")
TOKENS = [(7 * i * i + 3) % 100 for i in range(40)]
FAMILIES = {
    "llama": tiny_config(),
    "llama3": tiny_config(rope=Rope(1000.0, Llama3Scaling(8.0, 1.0, 4.0, 64))),
    "tied": tiny_config(tie_embeddings=True, heads=3, kv_heads=1, hidden=24),
    "mistral": tiny_config("mistral", head_dim=16),
    "qwen2": tiny_config("qwen2"),
    "qwen3": tiny_config("qwen3", head_dim=16),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_equals_our_decoder(name: str) -> None:
    config = FAMILIES[name]
    weights = random_weights(config, seed=1)
    network = load_network(config, weights, dtype=torch.float64, device=CPU)
    found = logits(network.hidden(torch.tensor([TOKENS, TOKENS[::-1]]))[0], network.head)
    expected = run(assemble(config, weights, "twin", dtype=torch.float64), TOKENS, [len(TOKENS)])
    # transformers keeps rotary angles in float32
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_draft_of_all_layers_is_the_target() -> None:
    config = tiny_config()
    weights = random_weights(config, seed=2)
    target = load_network(config, weights, dtype=torch.float64, device=CPU)
    draft = make_draft(target, weights, range(config.layers), dtype=torch.float64)
    token = torch.tensor([TOKENS])
    assert torch.equal(draft.hidden(token), target.hidden(token))
    assert draft.embedding is target.embedding and draft.head is target.head
    kept = draft_weights(draft)
    assert kept.keys() == weights.keys() - {EMBEDDING, HEAD}
    assert all(torch.equal(kept[name], weights[name]) for name in kept)


@given(total=st.integers(1, 90), data=st.data())
def test_layers_are_the_first_and_the_last(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    layers = spread_layers(total, count)
    assert len(set(layers)) == count and list(layers) == sorted(layers) and set(layers) <= set(range(total))
    assert layers[0] == 0 and (count == 1 or layers[-1] == total - 1)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="--layers must be between 1 and the target's 2, got 3"):
        spread_layers(2, 3)
    config = tiny_config()
    weights = random_weights(config, seed=3)
    with pytest.raises(InvalidModel, match=r"model\.norm\.weight is missing"):
        load_network(config, {k: v for k, v in weights.items() if k != NORM}, dtype=torch.float32, device=CPU)
    with pytest.raises(InvalidModel, match=r"has shape \[32, 32\], not \[32, 24\]"):
        load_network(replace(config, hidden=24), weights, dtype=torch.float32, device=CPU)
