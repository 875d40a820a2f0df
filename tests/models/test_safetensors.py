"""Hugging Face folders: sharded or not, and every way in which they are broken."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adaserve.errors import AdaServeError, InvalidModel, ModelNotFound
from adaserve.models.load import ModelInfo, describe, load_decoder, load_draft
from adaserve.models.registry import Format, ModelSource
from adaserve.models.safetensors import folder_config
from tests.models.checkpoints import huggingface_model, run

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def source(folder: Path) -> ModelSource:
    return ModelSource("test", Format.FOLDER, folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    huggingface_model("llama3").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A fresh copy of a good folder, to be broken."""
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_shards_make_the_same_model(saved: Path, tmp_path: Path) -> None:
    huggingface_model("llama3").save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    whole, sharded = (load_decoder(source(path), dtype=torch.float64) for path in (saved, tmp_path))
    assert torch.equal(run(whole, TOKENS, [8]), run(sharded, TOKENS, [8]))


def test_describe_reads_no_weights(folder: Path) -> None:
    info = describe(source(folder))
    assert isinstance(info, ModelInfo)
    assert (info.family, info.layers, info.vocab_size, info.context) == ("llama", 2, 100, 512)
    assert info.bytes == (folder / WEIGHTS).stat().st_size > 8 * info.parameters
    assert "llama" in str(info) and "2 layers" in str(info)


def test_generation_config_adds_ends_of_text(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert folder_config(folder).eos_ids == (7, 8, 2)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def truncate(name: str, keep: float) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return act


def index(weight_map: object) -> Callable[[Path], None]:
    return write(INDEX, json.dumps({"weight_map": weight_map}).encode())


@pytest.mark.parametrize(
    ("breaking", "error", "words"),
    [
        (remove(CONFIG), ModelNotFound, "no config.json"),
        (write(CONFIG, b"{"), InvalidModel, "config.json: not valid JSON"),
        (write(CONFIG, b"[]"), InvalidModel, "config.json: must hold a JSON object"),
        (write(CONFIG, b"\xff\xfe\xfd"), InvalidModel, "config.json: not valid JSON"),
        (write(CONFIG, b"[" * 100_000), InvalidModel, "config.json: not valid JSON"),
        (lambda folder: edit(folder / CONFIG, model_type="bert"), InvalidModel, "config.json: model_type 'bert'"),
        (lambda folder: edit(folder / CONFIG, hidden_size=40), InvalidModel, "shape"),
        (lambda folder: edit(folder / CONFIG, num_hidden_layers=3), InvalidModel, "model.layers.2"),
        (lambda folder: edit(folder / CONFIG, num_hidden_layers=1), InvalidModel, "unknown"),
        (write("generation_config.json", b"nonsense"), InvalidModel, "generation_config.json"),
        (remove(WEIGHTS), ModelNotFound, "no model.safetensors"),
        (write(WEIGHTS, b""), InvalidModel, "model.safetensors: damaged or truncated"),
        (write(WEIGHTS, bytes(100)), InvalidModel, "model.safetensors: damaged or truncated"),
        (write(WEIGHTS, b"\xff" * 100), InvalidModel, "model.safetensors: damaged or truncated"),
        (truncate(WEIGHTS, 0.01), InvalidModel, "model.safetensors: damaged or truncated"),
        (truncate(WEIGHTS, 0.9), InvalidModel, "model.safetensors: damaged or truncated"),
        (index([]), InvalidModel, "weight_map"),
        (index({}), InvalidModel, "weight_map"),
        (index({"a": 1}), InvalidModel, "weight_map"),
        (index({"a": "../../etc/passwd"}), InvalidModel, "not the name of a safetensors file"),
        (index({"a": "model.bin"}), InvalidModel, "not the name of a safetensors file"),
        (index({"a": "model-2.safetensors"}), InvalidModel, "model-2.safetensors: this shard is missing"),
    ],
)
def test_broken_folders_are_refused_in_one_line(
    folder: Path, breaking: Callable[[Path], None], error: type[AdaServeError], words: str
) -> None:
    breaking(folder)
    with pytest.raises(error) as caught:
        load_decoder(source(folder), dtype=torch.float32)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_draft_file_of_layers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = load_decoder(source(folder), dtype=torch.float64, positions=100)
    model = huggingface_model("llama3")
    layer = {k: v.contiguous() for k, v in model.state_dict().items() if ".layers.0." in k or k == "model.norm.weight"}
    path = tmp_path_factory.mktemp("draft") / "draft.safetensors"
    save_file(layer, path)
    draft = load_draft(ModelSource("draft", Format.LAYERS, path), target, dtype=torch.float64)
    assert draft.config.layers == 1
    assert draft.embedding is target.embedding
    assert draft.max_positions == target.max_positions == 100
    with pytest.raises(InvalidModel, match="can be a draft"):
        load_decoder(ModelSource("draft", Format.LAYERS, path), dtype=torch.float64)


def test_a_whole_model_as_draft_must_share_the_vocabulary(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = load_decoder(source(folder), dtype=torch.float64)
    draft = load_draft(source(folder), target, dtype=torch.float64)
    assert torch.equal(run(draft, TOKENS, [8]), run(target, TOKENS, [8]))
    other = tmp_path_factory.mktemp("other")
    model = huggingface_model("llama2")
    model.resize_token_embeddings(90)
    model.save_pretrained(other)
    with pytest.raises(InvalidModel, match="vocabulary has 90 tokens, the target's 100"):
        load_draft(source(other), target, dtype=torch.float64)


def test_a_draft_with_a_shorter_context_still_covers_the_targets(folder: Path, tmp_path: Path) -> None:
    target = load_decoder(source(folder), dtype=torch.float64)
    edit(folder / CONFIG, max_position_embeddings=8)
    draft = load_draft(source(folder), target, dtype=torch.float64)
    assert draft.max_positions == target.max_positions == 512
