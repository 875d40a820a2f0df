"""A decoder shared by several ranks computes what it computes alone."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adaserve.errors import InvalidConfig, InvalidModel
from adaserve.kernels.linear import available_paths
from adaserve.models.config import ModelConfig
from adaserve.models.int8 import Int8Weights, to_int8
from adaserve.models.load import load_decoder, load_draft
from adaserve.models.random import random_weights, tiny_config
from adaserve.models.registry import Format, ModelSource
from adaserve.models.safetensors import SafetensorsFiles, folder_weights
from adaserve.models.save import save_folder
from adaserve.models.weights import assemble, expected_shapes
from adaserve.parallel.group import ALONE, Group
from adaserve.parallel.share import Share, ShareWeights, possible_sizes
from tests.batches import causal_batch
from tests.models import checkpoints
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


def test_a_row_does_not_depend_on_other_rows() -> None:
    """With native kernels the law holds to the last bit, and so it does over ranks: sums are added in one order."""
    config = CONFIGS["llama"]
    weights = random_weights(config, 6)
    tokens = list(range(40))

    def both(rank: int) -> tuple[Tensor, Tensor]:
        decoder = assemble(config, weights, "tiny", dtype=torch.float32, group=world[rank])
        sizes = {"slots": 1, "pages_per_slot": 10, "page_size": 4}
        found = []
        for pieces in ([40], [1, 7, 2, 13, 17]):
            pool = decoder.new_pool(pages=10, page_size=4, slots=1)
            start, rows = 0, []
            for length in pieces:
                rows.append(decoder.forward(causal_batch([(0, tokens[start : start + length], start)], **sizes), pool))
                start += length
            found.append(decoder.logits(torch.cat(rows)))
        return found[0], found[1]

    if not available_paths():
        pytest.skip("no native kernels here; torch's own products promise nothing of the kind")
    world = groups(4)
    for at_once, in_pieces in together(4, both):
        assert torch.equal(at_once, in_pieces)


def test_blocks_are_shared_as_they_lie() -> None:
    """Quantised matrices are cut by rows anywhere and by columns between blocks; elsewhere by their dequantised values."""
    config = tiny_config(tie_embeddings=True, **WIDE)
    stored = Int8Weights(to_int8(random_weights(config, 7)), "int8")
    shapes = expected_shapes(config)
    shares = [ShareWeights(stored, Share(config, rank, 2), shapes, "int8") for rank in range(2)]
    for name, dim, fits in (
        ("model.layers.0.self_attn.k_proj.weight", 0, True),
        ("model.layers.0.self_attn.o_proj.weight", 1, True),  # 32 of 64 columns
        ("model.layers.0.mlp.down_proj.weight", 1, False),  # 48 of 96 columns
        ("model.embed_tokens.weight", 0, True),
    ):
        blocks = [share.blocks(name) for share in shares]
        values = [b.dequantize() for b in blocks if b is not None] or [share[name] for share in shares]
        assert [b is not None for b in blocks] == [fits, fits]
        assert torch.equal(torch.cat(values, dim)[: shapes[name][0]], stored[name])
        assert torch.equal(torch.cat([share[name] for share in shares], dim)[: shapes[name][0]], stored[name])


def test_a_draft_of_layers_borrows_whole_ends(tmp_path: Path) -> None:
    """The draft is rank 0's own, although the embedding and head that it borrows are shared."""
    config = CONFIGS["tied"]
    weights = random_weights(config, 8)
    save_folder(config, weights, tmp_path / "target", lambda line: None)
    layers = {name: tensor for name, tensor in weights.items() if ".layers.0." in name or name == "model.norm.weight"}
    save_file(layers, tmp_path / "draft.safetensors")
    source = ModelSource("target", Format.FOLDER, tmp_path / "target")
    draft = ModelSource("draft", Format.LAYERS, tmp_path / "draft.safetensors")
    drafts = []
    for group in (ALONE, groups(2)[0]):
        target = load_decoder(source, dtype=torch.float64, group=group)
        drafts.append(load_draft(draft, target, dtype=torch.float64, owner=source))
    assert drafts[1].config == drafts[0].config
    assert drafts[1].group.size == 1
    tokens = list(range(20))
    assert torch.equal(checkpoints.run(drafts[1], tokens, [20]), checkpoints.run(drafts[0], tokens, [20]))


def test_logits_of_the_first_tokens() -> None:
    config = CONFIGS["llama"]
    weights = random_weights(config, 3)
    hidden = torch.randn(5, config.hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alone = assemble(config, weights, "tiny", dtype=torch.float64)
    world = groups(2)

    def some(count: int, rank: int) -> Tensor:
        return assemble(config, weights, "tiny", dtype=torch.float64, group=world[rank]).logits(hidden, count)

    for count in (16, 64, 80):
        for found in together(2, partial(some, count)):
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
