"""Text to tokens and back: a thin wrapper over transformers' fast tokenizers, and incremental detokenising.

transformers is imported when a tokenizer is loaded and not before: a server of token ids does not need it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaserve.errors import InvalidConfig, InvalidModel, InvalidRequest, ModelNotFound
from adaserve.models.gguf_header import read_header
from adaserve.models.gguf_tokenizer import byte_level_tokenizer, is_byte_level
from adaserve.models.registry import Format, ModelSource
from adaserve.models.safetensors import read_json

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_WINDOW, _CONTEXT = 32, 8
_LONGEST_CHARACTER = 4


class Tokenizer:
    """One model's tokenizer.

    eos_ids: ids that end a text, as the tokenizer has it; a model's config may know more.
    vocab_size: one more than the largest id.
    """

    def __init__(self, fast: Any) -> None:
        """fast: a transformers tokenizer that is backed by the tokenizers library."""
        self._fast = fast
        self._backend = fast.backend_tokenizer
        self._added = self._backend.get_added_tokens_decoder()
        self._special = frozenset(index for index, token in self._added.items() if token.special)
        self._bytes = _byte_alphabet() if "ByteLevel" in repr(self._backend.decoder) else None
        fallback = [self._backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self._fallback = {index: byte for byte, index in enumerate(fallback) if index is not None} if self._bytes is None else {}
        self.vocab_size = 1 + max(self._backend.get_vocab(with_added_tokens=True).values())
        self.eos_ids: tuple[int, ...] = () if fast.eos_token_id is None else (int(fast.eos_token_id),)

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be turned into prompts."""
        return bool(self._fast.chat_template)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text; raises InvalidRequest for a text that is not valid Unicode."""
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequest("the text is not valid Unicode: it holds half of a surrogate pair", "prompt") from error
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; bytes that make no character become U+FFFD, unknown ids nothing."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> list[int]:
        """Return the token ids of a conversation, by default ready for the assistant's turn.

        messages: each with `role` and `content`. The template is the model's own, rendered in a sandbox. Raises InvalidRequest
        if the model has none or if it refuses the conversation.
        """
        if not self.has_chat_template:
            raise InvalidRequest("this model has no chat template; use /v1/completions with a plain prompt", "messages")
        try:
            text = self._fast.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # the template is a program of the model's: it may raise anything
            cause = " ".join(str(error).split())[:200]
            raise InvalidRequest(f"the model's chat template refuses these messages: {cause}", "messages") from error
        return self.encode(text, add_special_tokens=False)  # the template writes them itself

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into a model folder, chat template included."""
        self._fast.save_pretrained(str(folder))

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token stands for, which may be part of a character; empty for an unknown id."""
        piece: str | None = self._backend.id_to_token(index)
        if piece is None:
            return b""
        if index in self._fallback:
            return bytes([self._fallback[index]])
        if index in self._added:
            return piece.encode()
        if self._bytes is not None and all(character in self._bytes for character in piece):
            return bytes(self._bytes[character] for character in piece)
        return piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    def is_visible(self, index: int, skip_special_tokens: bool) -> bool:
        """Whether a token can contribute to the text of a sequence at all."""
        return self._backend.id_to_token(index) is not None and not (skip_special_tokens and index in self._special)

    def is_byte_fallback(self, index: int) -> bool:
        """Whether a token is a raw byte of a SentencePiece vocabulary: it reads only together with the whole run of such."""
        return index in self._fallback


class StreamDecoder:
    """Turns a growing list of tokens into pieces of text whose concatenation is exactly the text of the whole.

    No piece ends in half a character. Only a window of recent tokens is decoded each time, so the cost per token is constant:

        ... handed out and forgotten ... | context | handed out | held back: may still become one character |
                                         ^ window begins
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._window: list[int] = []
        self._emitted = 0  # characters of the window's text that have been handed out

    def push(self, ids: Sequence[int]) -> str:
        """Take tokens; returns the text that they complete, often empty for parts of a character."""
        self._window.extend(index for index in ids if self._tokenizer.is_visible(index, self._skip))
        # A run of byte tokens reads as text if all of it is valid UTF-8 and as U+FFFD for every byte otherwise, so it must end.
        if not self._window or self._tokenizer.is_byte_fallback(self._window[-1]):
            return ""
        text = self._decode(self._window)
        # Whatever is unfinished shows as one U+FFFD at the end; all before it can no longer change.
        stable = len(text) - text.endswith(_UNFINISHED)
        piece = text[self._emitted : stable]
        self._emitted = max(self._emitted, stable)
        if len(self._window) > _WINDOW:
            self._forget(text)
        return piece

    def finish(self) -> str:
        """Return what was held back, an unfinished character as U+FFFD; start afresh."""
        piece = self._decode(self._window)[self._emitted :]
        self._window, self._emitted = [], 0
        return piece

    def _forget(self, text: str) -> None:
        """Shorten the window where this cannot change what comes."""
        if not text.endswith(_UNFINISHED):
            # The text ends between characters, so the past matters only in that there is one: whether a leading space shows.
            recent = self._decode(self._window[-_CONTEXT:])
            if recent:
                self._window, self._emitted = self._window[-_CONTEXT:], len(recent)
            return
        # Garbage that never forms a character: cut where the halves read as the whole does, with a character's length to spare.
        for cut in range(len(self._window) - _LONGEST_CHARACTER, len(self._window) - 2 * _LONGEST_CHARACTER, -1):
            past = self._decode(self._window[:cut])
            if past + self._decode(self._window[cut:]) == text:
                self._window, self._emitted = self._window[cut:], self._emitted - len(past)
                return

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip) if ids else ""


def load_tokenizer(source: ModelSource) -> Tokenizer:
    """Load the tokenizer that lies beside a model's weights.

    Raises ModelNotFound without a tokenizer, InvalidModel for a broken one or one with ids that the model does not have,
    InvalidConfig if transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise InvalidConfig("text needs transformers; run: pip install 'adaserve[text]'") from error
    transformers.logging.set_verbosity_error()
    fast, known = (_from_gguf if source.format is Format.GGUF else _from_folder)(source.path, transformers)
    tokenizer = Tokenizer(fast)
    if known is not None and tokenizer.vocab_size > known:
        sizes = f"ids up to {tokenizer.vocab_size - 1}, the model knows {known} tokens"
        raise InvalidModel(f"{source.path}: the tokenizer does not belong to this model: it has {sizes}")
    return tokenizer


def _from_gguf(path: Path, transformers: Any) -> tuple[Any, int | None]:
    """A transformers tokenizer, and how many tokens the model knows if the file says so."""
    header = read_header(path)
    embedding = header.tensors.get("token_embd.weight")
    known = None if embedding is None else embedding.shape[0]
    template = header.metadata.get("tokenizer.chat_template")
    if is_byte_level(header):
        backend, special = byte_level_tokenizer(header)
        chat_template = template if isinstance(template, str) else None
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, chat_template=chat_template, clean_up_tokenization_spaces=False, **special
        )
        return fast, known
    if "tokenizer.ggml.model" not in header.metadata:
        raise ModelNotFound(f"{path}: no tokenizer in the file")
    return _load(path, transformers, path.parent, gguf_file=path.name), known


def _from_folder(path: Path, transformers: Any) -> tuple[Any, int | None]:
    """A transformers tokenizer, and how many tokens the model knows if the folder says so."""
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelNotFound(f"{path}: no tokenizer.json; the model folder lacks its tokenizer")
    known = read_json(path / "config.json").get("vocab_size") if (path / "config.json").is_file() else None
    return _load(path, transformers, path), known if isinstance(known, int) else None


def _load(path: Path, transformers: Any, place: Path, **options: str) -> Any:
    try:
        fast = transformers.AutoTokenizer.from_pretrained(str(place), local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # transformers and tokenizers raise all kinds for a broken file
        raise InvalidModel(f"{path}: the tokenizer cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not getattr(fast, "is_fast", False):
        raise InvalidModel(f"{path}: only tokenizers with a tokenizer.json are supported")
    return fast


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes with: printable Latin-1 as it is, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}
