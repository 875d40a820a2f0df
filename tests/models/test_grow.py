"""A grown model computes what the small one does."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaserve.errors import InvalidConfig, InvalidModel
from adaserve.models.config import ModelConfig
from adaserve.models.grow import SHAPES, GrownWeights, Shape, grown_config
from adaserve.models.random import random_weights, tiny_config
from adaserve.models.rope import FrequencyFactors, LinearScaling, Rope
from adaserve.models.weights import assemble
from tests.models.checkpoints import run

TOKENS = torch.randint(100, (17,), generator=torch.Generator().manual_seed(1)).tolist()


def logits(config: ModelConfig, weights: object, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return run(assemble(config, weights, "model", dtype=dtype), TOKENS, [10, 7])  # type: ignore[arg-type]


@st.composite
def growths(draw: st.DrawFn) -> tuple[ModelConfig, Shape]:
    """A tiny model of some family and a shape that holds it."""
    kv_heads, group, half = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    rope = draw(
        st.sampled_from(
            [Rope(), Rope(500.0, LinearScaling(2.0)), Rope(500.0, FrequencyFactors(tuple(1.0 + i for i in range(half))))]
        )
    )
    small = tiny_config(
        draw(st.sampled_from(["llama", "qwen2"])),
        layers=draw(st.integers(1, 3)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=2 * half,
        tie_embeddings=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        output_bias=draw(st.booleans()),
        rope=rope,
    )
    wide = draw(st.integers(1, 5))
    large_kv = kv_heads * -(-group // wide) + draw(st.integers(0, 2))
    return small, Shape(
        hidden=small.hidden + draw(st.integers(0, 20)),
        layers=small.layers + draw(st.integers(0, 4)),
        heads=large_kv * wide,
        kv_heads=large_kv,
        head_dim=small.head_dim * draw(st.integers(1, 3)),
        intermediate=small.intermediate + draw(st.integers(0, 9)),
    )


@settings(max_examples=60)
@given(growth=growths(), seed=st.integers(0, 99))
def test_logits_stay(growth: tuple[ModelConfig, Shape], seed: int) -> None:
    small, shape = growth
    weights = random_weights(small, seed)
    large = grown_config(small, shape)
    grown = GrownWeights(small, weights, large, dtype=torch.float64, seed=seed)
    torch.testing.assert_close(logits(large, grown), logits(small, weights), rtol=1e-9, atol=1e-9)


def test_what_is_new_is_not_empty() -> None:
    """A model that is mostly zeros would run faster than a large one does."""
    small = tiny_config()
    large = grown_config(small, Shape(64, 5, 12, 4, 16, 96))
    grown = GrownWeights(small, random_weights(small, 0), large, dtype=torch.float32)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        for layer in range(large.layers):
            assert (grown[f"model.layers.{layer}.{name}.weight"] != 0).double().mean() > 0.6


def test_tensors_are_the_same_whenever_they_are_asked_for() -> None:
    small = tiny_config()
    large = grown_config(small, Shape(48, 4, 8, 2, 8, 64))
    grown = GrownWeights(small, random_weights(small, 0), large, dtype=torch.float32, seed=3)
    other = GrownWeights(small, random_weights(small, 0), large, dtype=torch.float32, seed=4)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(grown[name], grown[name])
    assert not torch.equal(grown[name], other[name])
    assert not torch.equal(grown[name], grown[name.replace("layers.0", "layers.2")])


def test_the_named_shapes_have_the_sizes_of_their_names() -> None:
    small = tiny_config(heads=9, kv_heads=3, head_dim=64, hidden=576, intermediate=1536, layers=30, vocab_size=49152)
    for name, billions in (("8b", 7.4), ("32b", 31.7), ("70b", 69.3)):
        assert grown_config(small, SHAPES[name]).parameters / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden": 16}, "hidden must be at least 32"),
        ({"layers": 1}, "layers must be at least 2"),
        ({"kv_heads": 1, "heads": 1}, "kv_heads must be at least 4"),
        ({"head_dim": 12}, "head_dim 12 is not a multiple"),
        ({"heads": 5}, "5 heads are not a multiple"),
        ({"intermediate": 8}, "intermediate must be at least 48"),
    ],
)
def test_shapes_that_cannot_hold_the_model(changes: dict[str, int], part: str) -> None:
    with pytest.raises(InvalidConfig, match=part):
        grown_config(tiny_config(), replace(Shape(64, 4, 8, 4, 16, 96), **changes))


def test_models_that_cannot_be_grown() -> None:
    with pytest.raises(InvalidConfig, match="norms of queries"):
        grown_config(tiny_config("qwen3"), Shape(64, 4, 8, 4, 16, 96))
    small = tiny_config()
    weights = random_weights(small, 0)
    del weights["model.norm.weight"]
    with pytest.raises(InvalidModel, match=r"model\.norm\.weight"):
        GrownWeights(small, weights, grown_config(small, Shape(64, 4, 8, 4, 16, 96)), dtype=torch.float32)
