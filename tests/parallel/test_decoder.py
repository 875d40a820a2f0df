"""A decoder shared by several ranks computes what it computes alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adaserve.errors import InvalidConfig, InvalidModel
from adaserve.models.config import ModelConfig
from adaserve.models.random import random_weights, tiny_config
from adaserve.models.safetensors import SafetensorsFiles, folder_weights
from adaserve.models.save import save_folder
from adaserve.models.weights import assemble
from adaserve.parallel.group import ALONE, Group
from adaserve.parallel.share import Share, possible_sizes
from tests.batches import causal_batch
from tests.parallel.worlds import groups, together

WIDE: dict[str, Any] = {"heads": 8, "kv_heads": 4, "intermediate": 96}
BIASES = {"output_bias": True, "mlp_bias": True, "qkv_bias": True}
CONFIGS = {
    "llama": tiny_config(**WIDE),
    "tied": tiny_config(tie_embeddings=True, **WIDE),
    "qwen2": tiny_config("qwen2", **WIDE),
    "qwen3": tiny_config("qwen3", **WIDE),
    "biases": tiny_config(**WIDE, **BIASES),
    "one token more than the shares hold": tiny_config(vocab_size=129, **WIDE),
}
GROUPS = [(0, list(range(3, 23)), 0), (1, [7], 0), (2, [99, 1, 50], 0)]


def scores(config: ModelConfig, weights: Any, group: Group, dtype: torch.dtype = torch.float64) -> Tensor:
    """Logits of all rows of a batch, and of the next token of slot 0, which reads what the first pass stored."""
    decoder = assemble(config, weights, "tiny", dtype=dtype, group=group)
    pool = decoder.new_pool(pages=24, page_size=4, slots=3)
    sizes = {"slots": 3, "pages_per_slot": 8, "page_size": 4}
    first = decoder.forward(causal_batch(GROUPS, **sizes), pool)
    second = decoder.forward(causal_batch([(0, [42], 20)], **sizes), pool)
    return decoder.logits(torch.cat((first, second)))  # [R, V]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_shared_equals_alone(name: str, size: int) -> None:
    config = CONFIGS[name]
    weights = random_weights(config, 1)
    expected = scores(config, weights, ALONE)
    world = groups(size)
    for found in together(size, lambda rank: scores(config, weights, world[rank])):
        assert found.shape == (len(expected), config.vocab_size)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_ranks_have_the_same_bits(dtype: torch.dtype) -> None:
    """Every rank draws for itself, so their logits must not differ even in the last bit."""
    config = CONFIGS["llama"]
    weights = random_weights(config, 2)
    world = groups(4)
    first, *others = together(4, lambda rank: scores(config, weights, world[rank], dtype))
    assert all(torch.equal(first, other) for other in others)
    torch.testing.assert_close(first, scores(config, weights, ALONE, dtype), rtol=0, atol=1e-3 if dtype == torch.float32 else 0.1)


def test_logits_of_the_first_tokens() -> None:
    config = CONFIGS["llama"]
    weights = random_weights(config, 3)
    hidden = torch.randn(5, config.hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alone = assemble(config, weights, "tiny", dtype=torch.float64)
    world = groups(2)

    def some(rank: int, count: int) -> Tensor:
        return assemble(config, weights, "tiny", dtype=torch.float64, group=world[rank]).logits(hidden, count)

    for count in (16, 64, 80):
        for found in together(2, lambda rank, count=count: some(rank, count)):  # type: ignore[misc]
            torch.testing.assert_close(found, alone.logits(hidden)[:, :count], rtol=0, atol=1e-10)


def test_a_share_is_all_that_is_kept_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From safetensors no rank reads a whole matrix, and the shares together are the model."""
    config = CONFIGS["llama"]
    weights = random_weights(config, 4)
    save_folder(config, weights, tmp_path, lambda line: None)
    files = folder_weights(tmp_path)
    whole = SafetensorsFiles.__getitem__

    def no_matrices(self: SafetensorsFiles, name: str) -> Tensor:
        tensor = whole(self, name)
        assert tensor.dim() == 1, f"{name} was read whole"
        return tensor

    monkeypatch.setattr(SafetensorsFiles, "__getitem__", no_matrices)
    world = groups(2)
    ranks = [assemble(config, files, "files", dtype=torch.float64, group=group) for group in world]
    assert [r.embedding.shape[0] for r in ranks] == [64, 64]
    stored = weights["model.embed_tokens.weight"]
    torch.testing.assert_close(torch.cat([r.embedding for r in ranks])[: config.vocab_size], stored)
    down = torch.cat([r.layers[1].down.weight for r in ranks], 1)
    torch.testing.assert_close(down, weights["model.layers.1.mlp.down_proj.weight"])
    assert [r.new_pool(pages=1, page_size=1, slots=1).keys.shape[2] for r in ranks] == [2, 2]


def test_sizes_that_do_not_divide_are_refused() -> None:
    config = tiny_config(heads=12, kv_heads=6, intermediate=96)
    assert possible_sizes(config) == [1, 2, 3, 6]
    with pytest.raises(InvalidConfig, match="tensor_parallel_size 4 does not divide .*use one of 1, 2, 3, 6"):
        Share(config, 0, 4)


def test_a_tensor_of_another_shape_is_refused() -> None:
    """A file that holds what a rank wants, but not what the model's config says, is broken."""
    config = CONFIGS["llama"]
    weights = random_weights(config, 5)
    name = "model.layers.0.mlp.gate_proj.weight"
    with pytest.raises(InvalidModel, match="gate_proj.weight has shape .48, 32., the config asks for .96, 32."):
        assemble(config, {**weights, name: weights[name][:48]}, "file", dtype=torch.float64, group=replace(ALONE, size=2))
