"""Byte-level BPE tokenizers from a GGUF's metadata.

transformers can do this too, but reads the file through a slow parser (seconds for a vocabulary of 50,000) and does not know
every `tokenizer.ggml.pre`: SmolLM's, which splits digits one by one before anything else, is among those that it misses.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from adaserve.errors import InvalidModel
from adaserve.models.gguf_header import GgufHeader

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_CONTROL, _USER_DEFINED = 3, 4

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _gpt2() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_first() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _pattern(numbers: str) -> Callable[[], Any]:
    def build() -> Any:
        from tokenizers import Regex, pre_tokenizers

        words = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + numbers + _REST
        split = pre_tokenizers.Split(Regex(words), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return build


_PRE: dict[str, Callable[[], Any]] = {
    "gpt-2": _gpt2,
    "smollm": _digits_first,
    "llama-bpe": _pattern(r"\p{N}{1,3}"),
    "qwen2": _pattern(r"\p{N}"),
}
"""How text is cut before merging, by `tokenizer.ggml.pre`."""


def is_byte_level(header: GgufHeader) -> bool:
    """Whether `byte_level_tokenizer` can build this file's tokenizer."""
    return header.metadata.get("tokenizer.ggml.model") == "gpt2" and header.metadata.get("tokenizer.ggml.pre") in _PRE


def byte_level_tokenizer(header: GgufHeader) -> tuple["Backend", dict[str, str]]:
    """Build the tokenizer, and the texts of its special tokens under transformers' names (eos_token and so on).

    Raises InvalidModel for metadata that do not make a tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    tokens, merges = _texts(header, "tokens"), _texts(header, "merges")
    types = header.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise InvalidModel(f"{header.path}: tokenizer.ggml.token_type must have one entry per token")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    vocab = {token: index for index, token in enumerate(tokens)}
    pre = str(header.metadata["tokenizer.ggml.pre"])
    try:
        backend = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre == "llama-bpe"))
    except Exception as error:  # the Rust side raises bare Exceptions
        raise InvalidModel(f"{header.path}: vocabulary and merges do not fit: {' '.join(str(error).split())[:200]}") from error
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _PRE[pre]()
    backend.decoder = decoders.ByteLevel()
    kinds = dict(zip(tokens, types.tolist(), strict=True))
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in kinds.items() if k == _CONTROL])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t, k in kinds.items() if k == _USER_DEFINED])
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    special = {}
    for key, name in names.items():
        index = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            special[name] = tokens[index]
    begins = header.metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe")
    if begins and "bos_token" in special:
        bos = special["bos_token"]
        backend.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, vocab[bos])])
    return backend, special


def _texts(header: GgufHeader, name: str) -> list[str]:
    value = header.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not value:
        raise InvalidModel(f"{header.path}: metadata tokenizer.ggml.{name} must be a list of texts")
    try:
        "".join(value).encode()
    except UnicodeEncodeError:
        raise InvalidModel(f"{header.path}: metadata tokenizer.ggml.{name} holds texts that are not UTF-8") from None
    return value
