"""SmolLM2 for real: the pulled demo target and the packaged draft."""

from pathlib import Path

import pytest
import torch

from adaserve.errors import ModelNotFound
from adaserve.models.decoder import Decoder
from adaserve.models.load import describe, load_decoder, load_draft, read_config
from adaserve.models.pull import pull
from adaserve.models.registry import ModelSource, resolve_draft
from adaserve.models.tokenizer import Tokenizer, load_tokenizer
from tests.models.checkpoints import run

pytestmark = pytest.mark.e2e

CODE = "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +"
STORY = "The quick brown fox jumps over the lazy dog. Once upon a time, in a small village by the sea,"


@pytest.fixture(scope="module")
def source() -> ModelSource:
    try:
        return pull("demo")
    except ModelNotFound as error:
        pytest.skip(f"the demo cannot be fetched: {error}")


@pytest.fixture(scope="module")
def decoder(source: ModelSource) -> Decoder:
    return load_decoder(source, dtype=torch.float32, positions=512)


@pytest.fixture(scope="module")
def tokenizer(source: ModelSource) -> Tokenizer:
    return load_tokenizer(source)


@pytest.mark.timeout(900)
def test_logits_equal_transformers(source: ModelSource, decoder: Decoder, tokenizer: Tokenizer) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    # What from_pretrained(gguf_file=...) does, less its need for the accelerate package.
    config = LlamaConfig(
        num_hidden_layers=30,
        hidden_size=576,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).float().eval()
    tensors = load_gguf_checkpoint(str(source.path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], []), "the head is the embedding"
    for text in (CODE, STORY):
        ids = tokenizer.encode(text)
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0]  # [L, V]
        for pieces in ([len(ids)], [5, 1, len(ids) - 6]):
            actual = run(decoder, ids, pieces)
            torch.testing.assert_close(actual, expected, rtol=0, atol=2e-3)
            assert torch.equal(actual.argmax(-1), expected.argmax(-1))


def test_it_makes_sense(decoder: Decoder, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("The capital of France is")
    assert tokenizer.decode([int(run(decoder, ids, [len(ids)])[-1].argmax())]) == " Paris"


def test_bfloat16_agrees_mostly(source: ModelSource, decoder: Decoder, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(CODE + STORY)
    exact = run(decoder, ids, [len(ids)])
    rough = run(load_decoder(source, dtype=torch.bfloat16, positions=512), ids, [len(ids)])
    assert rough.dtype == torch.float32
    assert (rough.argmax(-1) == exact.argmax(-1)).double().mean() > 0.9


def test_the_draft_often_agrees(decoder: Decoder, tokenizer: Tokenizer) -> None:
    draft = load_draft(resolve_draft("demo"), decoder, dtype=torch.float32)
    assert draft.config.layers == 4
    assert draft.embedding is decoder.embedding
    assert draft.head is decoder.head
    ids = tokenizer.encode(CODE + STORY)
    agreed = run(draft, ids, [len(ids)]).argmax(-1) == run(decoder, ids, [len(ids)]).argmax(-1)
    assert agreed.double().mean() > 0.3


def test_tokenizer(source: ModelSource, tokenizer: Tokenizer) -> None:
    config = read_config(source)
    assert tokenizer.vocab_size == config.vocab_size == 49152
    assert tokenizer.eos_ids == config.eos_ids == (2,)
    assert tokenizer.decode([1, 2], skip_special_tokens=False) == "<|im_start|><|im_end|>"
    assert tokenizer.decode([1, 2]) == ""
    chat = tokenizer.chat([{"role": "user", "content": "hi"}])
    text = tokenizer.decode(chat, skip_special_tokens=False)
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert text.startswith("<|im_start|>system\n")
    # Digits stand alone in this vocabulary, and do not take the space before them along.
    assert [tokenizer.decode([index]) for index in tokenizer.encode("x  12")] == ["x", "  ", "1", "2"]


def test_describe(source: ModelSource) -> None:
    info = describe(source)
    assert info.parameters == 134_515_008
    assert str(info) == "demo: llama, 135M parameters, 30 layers, context 8192 (gguf file)"
    assert Path(info.path).stat().st_size == info.bytes
