"""Text to tokens and back; streaming hands out exactly the text of the whole, in whole characters."""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from adaserve.errors import InvalidModel, InvalidRequest, ModelNotFound
from adaserve.models.registry import Format, ModelSource
from adaserve.models.tokenizer import StreamDecoder, Tokenizer, _byte_alphabet, load_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('unknown role') }}{% endif %}"
    "<start>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
MERGES = ["h e", "l l", "he ll", "hell o", "\u0120 \u0120", "1 2"]
ALPHABET = sorted(_byte_alphabet(), key=_byte_alphabet().__getitem__)
SPECIAL = ["<pad>", "<start>", "<end>"]
VOCAB = [*ALPHABET, *(merge.replace(" ", "") for merge in MERGES), *SPECIAL, "<think>"]
START, END = VOCAB.index("<start>"), VOCAB.index("<end>")


def wrap(backend: Backend, **options: str) -> Tokenizer:
    from transformers import PreTrainedTokenizerFast

    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **options))


def byte_level() -> Tokenizer:
    pairs = [tuple(merge.split(" ")) for merge in MERGES]
    backend = Backend(models.BPE(vocab={token: index for index, token in enumerate(VOCAB)}, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return wrap(backend, eos_token="<end>", chat_template=TEMPLATE)


SPIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "\u2581",
    "a",
    "b",
    "\u2581a",
    "\u2581b",
    "\u00e9",
    "\u4e2d",
]


def sentencepiece() -> Tokenizer:
    """As Llama 2's: spaces become a block character, unknown characters become byte tokens, the first space is stripped."""
    merges = [("\u2581", "a"), ("\u2581", "b")]
    vocab = {token: index for index, token in enumerate(SPIECES)}
    backend = Backend(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPIECES[:3]])
    return wrap(backend, eos_token="</s>")


TOKENIZERS = {"byte-level": byte_level(), "sentencepiece": sentencepiece()}
texts = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("ab he12\u00e9\u4e2d\U0001f600\u200d")), max_size=60
)


@given(text=texts, kind=st.sampled_from(sorted(TOKENIZERS)))
def test_text_survives(text: str, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert all(0 <= index < tokenizer.vocab_size for index in ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def stream(tokenizer: Tokenizer, ids: Sequence[int], cuts: Sequence[int], skip: bool) -> list[str]:
    """Push the ids in pieces that end at the cuts."""
    decoder = StreamDecoder(tokenizer, skip_special_tokens=skip)
    ends = sorted({min(cut, len(ids)) for cut in cuts} | {len(ids)})
    begins = [0, *ends[:-1]]
    return [decoder.push(ids[begin:end]) for begin, end in zip(begins, ends, strict=True)] + [decoder.finish()]


every_cut = st.just(range(1, 400))


@settings(max_examples=200)
@given(data=st.data(), kind=st.sampled_from(sorted(TOKENIZERS)), skip=st.booleans())
def test_pieces_of_any_tokens_add_up_to_the_whole(data: st.DataObject, kind: str, skip: bool) -> None:
    tokenizer = TOKENIZERS[kind]
    size = tokenizer.vocab_size
    # Bytes of characters, garbage, special tokens and ids that do not exist (a padded vocabulary has such).
    multibyte = st.text(st.characters(min_codepoint=128, exclude_categories=["Cs"]), min_size=1, max_size=6)
    part = st.one_of(
        multibyte.map(lambda text: tokenizer.encode(text, add_special_tokens=False)),
        st.lists(st.integers(0, size - 1), max_size=40),
        st.lists(st.sampled_from([3 + 0x80, 3 + 0xE2, 0x80, 0xE2, 0xF0]), max_size=50),
        st.lists(st.sampled_from([size - 1, size - 2, size - 3, size, size + 7, START, 1, 2]), max_size=40),
    )
    ids = [index for piece in data.draw(st.lists(part, max_size=6)) for index in piece]
    cuts = data.draw(st.one_of(every_cut, st.lists(st.integers(1, 200), max_size=20)))
    assert "".join(stream(tokenizer, ids, cuts, skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


@given(text=texts, kind=st.sampled_from(sorted(TOKENIZERS)))
def test_pieces_never_hold_half_a_character(text: str, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    whole = text.replace("\N{REPLACEMENT CHARACTER}", "?")
    pieces = stream(tokenizer, tokenizer.encode(whole, add_special_tokens=False), range(1, 400), skip=False)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "".join(pieces) == whole


def test_text_comes_as_soon_as_it_is_whole() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("hello \u00e9!", add_special_tokens=False)
    pieces = stream(tokenizer, ids, range(1, 20), skip=True)
    assert pieces == ["hello", " ", "", "\u00e9", "!", ""]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_long_stream_decodes_only_its_end(kind: str) -> None:
    class Counting(Tokenizer):
        longest = 0

        def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
            self.longest = max(self.longest, len(ids))
            return super().decode(ids, skip_special_tokens)

    tokenizer = Counting(TOKENIZERS[kind]._fast)
    sound = tokenizer.encode("ab \u00e9\u4e2d" * 200, add_special_tokens=False)
    garbage = [0x80] * 500 if kind == "byte-level" else []
    stream(tokenizer, sound + garbage, range(1, 4000), skip=True)
    assert len(sound) > 500
    assert tokenizer.longest < 60


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=texts)
def test_token_bytes_add_up(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, add_special_tokens=False)
    joined = b"".join(tokenizer.token_bytes(index) for index in ids)
    assert joined.decode() == (text if kind == "byte-level" else " " + text if text else "")


def test_special_tokens() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    assert tokenizer.eos_ids == (END,)
    assert tokenizer.encode("hello<end>")[-1] == END
    assert tokenizer.decode([START, *tokenizer.encode("hello"), END]) == "hello"
    assert tokenizer.decode([START, END], skip_special_tokens=False) == "<start><end>"
    assert tokenizer.token_bytes(END) == b"<end>"
    assert tokenizer.token_bytes(10**6) == b""


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="not valid Unicode"):
        TOKENIZERS["byte-level"].encode("a\ud800b")


def test_chat() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.chat([{"role": "user", "content": "hello"}])
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<start>user\nhello<end>\n<start>assistant\n"
    assert ids[0] == START
    closed = tokenizer.chat([{"role": "user", "content": "hello"}], add_generation_prompt=False)
    assert closed == ids[: len(closed)] and len(closed) < len(ids)


def test_chat_refusals_are_requests_faults() -> None:
    with pytest.raises(InvalidRequest, match="unknown role") as caught:
        TOKENIZERS["byte-level"].chat([{"role": "wizard", "content": "hello"}])
    assert caught.value.param == "messages"
    with pytest.raises(InvalidRequest, match="no chat template"):
        TOKENIZERS["sentencepiece"].chat([{"role": "user", "content": "hello"}])


def test_templates_run_in_a_sandbox() -> None:
    evil = wrap(TOKENIZERS["byte-level"]._backend, chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidRequest, match="refuses"):
        evil.chat([{"role": "user", "content": "hello"}])


def test_folder_round_trip(tmp_path: Path) -> None:
    original = TOKENIZERS["byte-level"]
    original._fast.save_pretrained(tmp_path)
    source = ModelSource("test", Format.FOLDER, tmp_path)
    loaded = load_tokenizer(source)
    assert loaded.encode("hello 12 \u00e9") == original.encode("hello 12 \u00e9")
    assert loaded.eos_ids == original.eos_ids
    messages = [{"role": "user", "content": "hello"}]
    assert loaded.chat(messages) == original.chat(messages)


def test_a_tokenizer_must_fit_its_model(tmp_path: Path) -> None:
    original = TOKENIZERS["byte-level"]
    original._fast.save_pretrained(tmp_path)
    source = ModelSource("test", Format.FOLDER, tmp_path)
    # AutoTokenizer reads the config too, so it must be one of a model.
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": len(VOCAB)}))
    assert load_tokenizer(source).vocab_size == len(VOCAB)
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": len(VOCAB) - 1}))
    with pytest.raises(InvalidModel, match="does not belong to this model"):
        load_tokenizer(source)


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    source = ModelSource("test", Format.FOLDER, tmp_path)
    with pytest.raises(ModelNotFound, match=r"no tokenizer\.json"):
        load_tokenizer(source)
    TOKENIZERS["byte-level"]._fast.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidModel) as caught:
        load_tokenizer(source)
    assert "\n" not in str(caught.value)


def gguf_file(path: Path, pre: str, **changes: Any) -> ModelSource:
    fields: dict[str, Any] = {"tokens": VOCAB, "merges": MERGES, "types": [1] * (len(VOCAB) - 4) + [3, 3, 3, 4]} | changes
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(fields["tokens"])
    writer.add_token_merges(fields["merges"])
    writer.add_token_types(fields["types"])
    writer.add_eos_token_id(END)
    writer.add_bos_token_id(START)
    writer.add_chat_template(TEMPLATE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ModelSource("test", Format.GGUF, path)


def test_gguf_tokenizer_equals_the_one_it_was_made_from(tmp_path: Path) -> None:
    original = TOKENIZERS["byte-level"]
    loaded = load_tokenizer(gguf_file(tmp_path / "t.gguf", "gpt-2"))
    for text in ("hello hello  \u00e9 12", "<start>a<think><end>", ""):
        assert loaded.encode(text) == original.encode(text)
    assert loaded.eos_ids == (END,)
    assert loaded.decode([START, END, VOCAB.index("<think>")]) == "<think>", (
        "user-defined tokens are text, control tokens are not"
    )
    messages = [{"role": "user", "content": "hello"}]
    assert loaded.chat(messages) == original.chat(messages)


def test_each_family_cuts_text_in_its_own_way(tmp_path: Path) -> None:
    def pieces(pre: str, text: str) -> list[str]:
        tokenizer = load_tokenizer(gguf_file(tmp_path / f"{pre}.gguf", pre))
        return [tokenizer.decode([index], skip_special_tokens=False) for index in tokenizer.encode(text)]

    assert pieces("gpt-2", "  12") == [" ", " ", "12"]
    assert pieces("smollm", "  12") == ["  ", "1", "2"]
    assert pieces("qwen2", "  12") == [" ", " ", "1", "2"]
    assert pieces("llama-bpe", "  12") == ["<start>", " ", " ", "12"], "llama.cpp adds Llama 3's first token unless told not to"


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "llama-bpe"])  # transformers does not know smollm's
def test_gguf_tokenizers_equal_those_that_transformers_builds(pre: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours = load_tokenizer(gguf_file(tmp_path / "t.gguf", pre))
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="t.gguf")

    @settings(max_examples=50)
    @given(text=texts)
    def agree(text: str) -> None:
        # NFC is Qwen's own normalisation, which transformers leaves out for a file that calls itself a Llama.
        text = unicodedata.normalize("NFC", text)
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)

    agree()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"merges": ["x y z"]}, "vocabulary and merges do not fit"),
        ({"types": [1]}, "token_type"),
    ],
)
def test_gguf_metadata_that_make_no_tokenizer(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=words) as caught:
        load_tokenizer(gguf_file(tmp_path / "t.gguf", "gpt-2", **changes))
    assert "\n" not in str(caught.value)


def test_gguf_without_tokenizer(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelNotFound, match="no tokenizer"):
        load_tokenizer(ModelSource("test", Format.GGUF, tmp_path / "t.gguf"))


def test_byte_alphabet_is_a_bijection() -> None:
    assert sorted(_byte_alphabet().values()) == list(range(256))
    assert json.loads(json.dumps(ALPHABET))[0x20] == "\u0120"
