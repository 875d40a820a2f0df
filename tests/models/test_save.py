"""What is saved is what is loaded, and `adaserve grow` saves a model of the same function."""

from pathlib import Path

import pytest
import torch

from adaserve.cli.main import main
from adaserve.errors import InvalidConfig
from adaserve.models.grow import SHAPES, Shape
from adaserve.models.load import load_decoder
from adaserve.models.random import random_weights, tiny_config
from adaserve.models.registry import resolve
from adaserve.models.rope import FrequencyFactors, LinearScaling, Llama3Scaling, Rope
from adaserve.models.safetensors import folder_config, folder_weights
from adaserve.models.save import save_folder
from tests.models.checkpoints import run
from tests.server.tiny import write_model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": True, "eos_ids": (2, 5)},
        {"rope": Rope(500.0, LinearScaling(2.0)), "mlp_bias": True},
        {"rope": Rope(500.0, Llama3Scaling(8.0, 1.0, 4.0, 64)), "qkv_bias": True, "output_bias": True},
        {"family": "qwen2", "qkv_bias": True},
        {"family": "qwen3", "qk_norm": True},
    ],
)
@pytest.mark.parametrize("shard_bytes", [1, 30_000, 1 << 30])
def test_round_trip(changes: dict[str, object], shard_bytes: int, tmp_path: Path) -> None:
    config = tiny_config(**changes)  # type: ignore[arg-type]
    weights = random_weights(config, 0)
    save_folder(config, weights, tmp_path, lambda line: None, shard_bytes)
    assert folder_config(tmp_path) == config
    loaded = folder_weights(tmp_path)
    assert set(loaded) == set(weights)
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


@pytest.mark.parametrize("changes", [{"rope": Rope(500.0, FrequencyFactors((1.0, 2.0, 3.0, 4.0)))}, {"qkv_bias": True}])
def test_what_config_json_cannot_say(changes: dict[str, object], tmp_path: Path) -> None:
    config = tiny_config(**changes)  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match=r"config\.json"):
        save_folder(config, random_weights(config, 0), tmp_path, lambda line: None)


def test_grow_writes_a_model_that_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = write_model(tmp_path / "small")
    config = folder_config(small)
    shape = Shape(config.hidden + 16, config.layers + 2, config.heads * 2, config.kv_heads * 2, config.head_dim * 2, 512)
    monkeypatch.setitem(SHAPES, "8b", shape)
    assert main(["grow", str(small), "--shape", "8b", "--out", str(tmp_path / "large")]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert (folder / "tokenizer.json").exists()
    tokens = [1, 5, 9, 2, 7]
    before, after = (run(load_decoder(resolve(str(f)), dtype=torch.float64), tokens, [5]) for f in (small, folder))
    # The folder is in bfloat16: three digits.
    torch.testing.assert_close(after, before, rtol=0.05, atol=0.05 * float(before.std()))
