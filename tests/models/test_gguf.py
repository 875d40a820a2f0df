"""GGUF files: the same model as its safetensors, and nothing that a hostile file can do but be refused."""

import struct
import time
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaserve.errors import InvalidModel
from adaserve.kernels.linear import CHOICE, available_paths
from adaserve.kernels.linear import Path as Products
from adaserve.models.config import ModelConfig
from adaserve.models.gguf import GgufWeights, gguf_config
from adaserve.models.gguf_header import read_header
from adaserve.models.load import load_decoder
from adaserve.models.random import random_weights, tiny_config
from adaserve.models.registry import Format, ModelSource
from adaserve.models.rope import FrequencyFactors, Llama3Scaling, Rope
from adaserve.models.weights import assemble
from tests.models.checkpoints import run, write_gguf

Quantisation = gguf.GGMLQuantizationType
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def source(path: Path) -> ModelSource:
    return ModelSource("test", Format.GGUF, path)


CONFIGS = {
    "llama": tiny_config("llama", eos_ids=(2,)),
    "llama-tied": tiny_config("llama", tie_embeddings=True, eos_ids=(2,)),
    "llama-biases": tiny_config("llama", qkv_bias=True, eos_ids=(2,)),
    "qwen2": tiny_config("qwen2", eos_ids=(2,)),
    "qwen3": tiny_config("qwen3", head_dim=16, eos_ids=(2,)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    weights = {key: tensor.float() for key, tensor in random_weights(config, seed=0).items()}
    write_gguf(tmp_path / "m.gguf", config, weights)
    header = read_header(tmp_path / "m.gguf")
    read = gguf_config(header)
    assert read == replace(config, eps=read.eps)
    assert read.eps == pytest.approx(config.eps)
    stored = GgufWeights(header)
    assert set(stored) == set(weights)
    for key, tensor in weights.items():
        assert torch.equal(stored[key], tensor), key
    expected = run(assemble(read, weights, "here", dtype=torch.float64), TOKENS, [8])
    assert torch.equal(run(load_decoder(source(tmp_path / "m.gguf"), dtype=torch.float64), TOKENS, [8]), expected)


@pytest.mark.parametrize(
    ("kind", "error"), [(Quantisation.F16, 1e-3), (Quantisation.BF16, 1e-2), (Quantisation.Q8_0, 0.02), (Quantisation.Q4_0, 0.3)]
)
def test_quantised_weights_come_back_close(kind: gguf.GGMLQuantizationType, error: float, tmp_path: Path) -> None:
    config = tiny_config(hidden=64, head_dim=16, intermediate=96)
    weights = random_weights(config, seed=0)
    write_gguf(tmp_path / "m.gguf", config, weights, kind=kind)
    stored = GgufWeights(read_header(tmp_path / "m.gguf"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(stored[name].double(), weights[name])
    assert (stored[name] - weights[name]).std() < error * weights[name].std()


@pytest.mark.parametrize("kind", [Quantisation.Q4_0, Quantisation.Q4_1, Quantisation.Q8_0])
def test_blocks_stand_for_the_same_numbers(kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    config = tiny_config(hidden=64, head_dim=16, intermediate=96)
    write_gguf(tmp_path / "m.gguf", config, random_weights(config, seed=0), kind=kind)
    stored = GgufWeights(read_header(tmp_path / "m.gguf"))
    matrices = 0
    for name in stored:
        found = stored.blocks(name)
        assert (found is None) == (stored[name].dim() == 1)
        if found is not None:
            matrices += 1
            assert torch.equal(found.dequantize(), stored[name]), name
    assert matrices > 7


@pytest.mark.parametrize("kind", [Quantisation.Q4_0, Quantisation.Q4_1, Quantisation.Q8_0])
def test_a_decoder_of_blocks_is_the_decoder_of_their_values(
    kind: gguf.GGMLQuantizationType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit where rows are not rounded to 8 bits, nearly where they are."""
    config = tiny_config(hidden=64, head_dim=16, intermediate=96)
    write_gguf(tmp_path / "m.gguf", config, random_weights(config, seed=0), kind=kind)
    header = read_header(tmp_path / "m.gguf")
    plain = dict(GgufWeights(header))  # no longer in blocks
    for path in available_paths():
        monkeypatch.setenv(CHOICE, path.value)
        expected = run(assemble(gguf_config(header), plain, "here", dtype=torch.bfloat16), TOKENS, [8])
        found = run(load_decoder(source(tmp_path / "m.gguf"), dtype=torch.bfloat16), TOKENS, [8])
        if path is Products.INT8:
            assert ((found - expected).std() / expected.std()).item() < 0.05
        else:
            assert torch.equal(found, expected)


def test_llama3_scaling_comes_as_divisors(tmp_path: Path) -> None:
    rope = Rope(1e4, Llama3Scaling(8.0, 1.0, 4.0, 64))
    factors = (Rope(1e4).frequencies(8) / rope.frequencies(8)).float().tolist()
    config = tiny_config()
    write_gguf(tmp_path / "m.gguf", config, random_weights(config, seed=0), factors=factors)
    read = gguf_config(read_header(tmp_path / "m.gguf"))
    assert read.rope.scaling == FrequencyFactors(tuple(factors))
    torch.testing.assert_close(read.rope.frequencies(8), rope.frequencies(8), rtol=1e-6, atol=0)
    load_decoder(source(tmp_path / "m.gguf"), dtype=torch.float32)


def test_sliding_window_caps_the_context(tmp_path: Path) -> None:
    config = tiny_config()
    write_gguf(tmp_path / "m.gguf", config, random_weights(config, seed=0), extra={"llama.attention.sliding_window": 32})
    read = gguf_config(read_header(tmp_path / "m.gguf"))
    assert read.max_positions == 32
    assert read.note is not None


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("general.architecture", "gpt2", "architecture 'gpt2' is not supported"),
        ("llama.expert_count", 8, "mixtures of experts"),
        ("llama.rope.dimension_count", 4, "partial rotary"),
        ("llama.rope.scaling.type", "yarn", "yarn"),
        ("llama.block_count", 0, "block_count"),
        ("llama.block_count", 3, "missing"),
        ("llama.block_count", 1, "unknown"),
        ("llama.block_count", "two", "block_count"),
        ("llama.embedding_length", 64, "shape"),
        ("llama.attention.head_count", 3, "num_key_value_heads"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "rms_epsilon"),
        ("llama.context_length", 2**31, "max_position_embeddings"),
    ],
)
def test_metadata_that_make_no_sense_are_refused(key: str, value: int | float | str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    config = tiny_config()
    write_gguf(path, config, random_weights(config, seed=0))
    header = read_header(path)
    header.metadata[key] = value
    with pytest.raises(InvalidModel) as caught:
        assemble(gguf_config(header), GgufWeights(header), str(path), dtype=torch.float32)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def start(tensors: int = 0, keys: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def info(name: bytes, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


HUGE = 2**63
ROOM = bytes(1000)
HOSTILE = {
    "empty": (b"", "truncated"),
    "short": (b"GGUF", "truncated"),
    "magic": (start(magic=b"GGML") + ROOM, "magic"),
    "version": (start(version=99) + ROOM, "version 99"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + ROOM, "version"),
    "huge tensor count": (start(tensors=HUGE) + ROOM, f"claims {HUGE} tensors"),
    "huge key count": (start(keys=HUGE) + ROOM, f"claims {HUGE} metadata keys"),
    "too many keys for the size": (start(keys=100) + ROOM, "metadata keys"),
    "huge key": (start(keys=1) + struct.pack("<Q", HUGE) + ROOM, "name or text"),
    "huge text": (start(keys=1) + key(b"a", 8, struct.pack("<Q", HUGE)) + ROOM, "name or text"),
    "text past the end": (start(keys=1) + key(b"a", 8, struct.pack("<Q", 1020)) + ROOM, "truncated"),
    "huge list": (start(keys=1) + key(b"a", 9, struct.pack("<IQ", 4, HUGE)) + ROOM, "numbers in a list"),
    "huge list of texts": (start(keys=1) + key(b"a", 9, struct.pack("<IQ", 8, HUGE)) + ROOM, "texts in a list"),
    "list of lists": (start(keys=1) + key(b"a", 9, struct.pack("<IQ", 9, 1)) + ROOM, "lists of type 9"),
    "unknown type": (start(keys=1) + key(b"a", 77, b"") + ROOM, "unknown type 77"),
    "twice the same key": (start(keys=2) + key(b"a", 0, b"1") * 2 + ROOM, "twice"),
    "alignment": (start(keys=1) + key(b"general.alignment", 4, struct.pack("<I", 0)) + ROOM, "alignment"),
    "no dimensions": (start(tensors=1) + info(b"t", ()) + ROOM, "0 dimensions"),
    "many dimensions": (start(tensors=1) + info(b"t", (1,) * 9) + ROOM, "9 dimensions"),
    "huge dimension": (start(tensors=1) + info(b"t", (HUGE, 2)) + ROOM, "impossible dimension"),
    "zero dimension": (start(tensors=1) + info(b"t", (0, HUGE)) + ROOM, "impossible dimension"),
    "huge tensor": (start(tensors=1) + info(b"t", (2**39, 2**39)) + ROOM, "truncated: tensor t"),
    "offset past the end": (start(tensors=1) + info(b"t", (2,), offset=HUGE) + ROOM, "truncated: tensor t"),
    "unknown quantisation": (start(tensors=1) + info(b"t", (2,), kind=999) + ROOM, "unknown quantisation 999"),
    "half a block": (start(tensors=1) + info(b"t", (33,), kind=2) + ROOM, "blocks of 32"),
    "twice the same tensor": (start(tensors=2) + info(b"t", (2,)) * 2 + ROOM, "same name"),
    "no metadata": (start() + ROOM, "architecture None"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_at_once(name: str, tmp_path: Path) -> None:
    data, words = HOSTILE[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    began = time.perf_counter()
    with pytest.raises(InvalidModel) as caught:
        load_decoder(source(path), dtype=torch.float32)
    assert time.perf_counter() - began < 2
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="cannot be read"):
        read_header(tmp_path)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "good.gguf"
    config = tiny_config(vocab_size=20, layers=1)
    write_gguf(path, config, random_weights(config, seed=0))
    return path


@settings(max_examples=60)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_refused(good: Path, cut: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cut") / "m.gguf"
    whole = good.read_bytes()
    path.write_bytes(whole[: int(cut * (len(whole) - 32))])  # the last 32 bytes may be padding
    with pytest.raises(InvalidModel):
        load_decoder(source(path), dtype=torch.float32)


@settings(max_examples=100)
@given(data=st.data())
def test_damaged_headers_load_or_are_refused_and_nothing_else(
    good: Path, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(good.read_bytes())
    for place in data.draw(st.lists(st.integers(0, 2500), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damage") / "m.gguf"
    path.write_bytes(damaged)
    try:
        decoder = load_decoder(source(path), dtype=torch.float32, positions=64)
    except InvalidModel as refusal:
        assert "\n" not in str(refusal)
    else:
        assert isinstance(decoder.config, ModelConfig)
