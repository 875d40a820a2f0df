"""ModelConfig: a decoder's shape and its few family traits, read from a Hugging Face config.json."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adaserve.errors import InvalidModel
from adaserve.models.rope import LinearScaling, Llama3Scaling, Rope

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Values of `model_type` that are supported. SmolLM2 calls itself llama."""

_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_MAX_POSITIONS = 2**22
_MAX_SIZE = 2**24


@dataclass(frozen=True)
class ModelConfig:
    """All that distinguishes one decoder from another.

    hidden, intermediate and head_dim are widths; heads counts query heads (H), kv_heads key-value heads (KH).
    max_positions is the usable context in tokens: what the model was made for, capped at a sliding window, because attention
    here always sees the whole context. `note` then says so; it is None when there is nothing to say.
    eos_ids are the ids that end a text, as far as the model's own files tell.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab_size: int
    eps: float
    rope: Rope
    max_positions: int
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    eos_ids: tuple[int, ...] = ()
    note: str | None = None

    @staticmethod
    def from_huggingface(data: Mapping[str, object], label: str = "config.json") -> "ModelConfig":
        """Read the contents of a config.json, of transformers 4 or 5.

        label names the file in errors. Raises InvalidModel for a model of another kind and for numbers that make no sense.
        """
        return _Reader(data, label).config()

    @property
    def parameters(self) -> int:
        """How many weights the model has; a shared embedding counts once."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        layer += (self.heads + 2 * self.kv_heads) * self.head_dim * self.qkv_bias + self.hidden * self.output_bias
        layer += (2 * self.intermediate + self.hidden) * self.mlp_bias + 2 * self.head_dim * self.qk_norm
        embeddings = self.vocab_size * self.hidden * (1 if self.tie_embeddings else 2)
        return self.layers * layer + embeddings + self.hidden


class _Reader:
    """One config.json being read; every refusal names the file and the field."""

    def __init__(self, data: Mapping[str, object], label: str) -> None:
        self._data = data
        self._label = label

    def config(self) -> ModelConfig:
        family = self._family()
        hidden = self._integer("hidden_size", _MAX_SIZE)
        heads = self._integer("num_attention_heads", _MAX_SIZE)
        kv_heads = self._integer("num_key_value_heads", _MAX_SIZE, default=heads)
        head_dim = self._integer("head_dim", _MAX_SIZE, default=128 if family == "qwen3" else max(1, hidden // heads))
        if heads % kv_heads:
            raise self._invalid(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        if head_dim % 2:
            raise self._invalid(f"head_dim {head_dim} is odd, so it cannot be rotated")
        bias = self._flag("attention_bias")
        positions, note = self._context(family)
        return ModelConfig(
            family=family,
            layers=self._integer("num_hidden_layers", 4096),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=self._integer("intermediate_size", _MAX_SIZE),
            vocab_size=self._integer("vocab_size", _MAX_SIZE),
            eps=self._number(self._data, "rms_norm_eps", default=1e-6),
            rope=self._rope(),
            max_positions=positions,
            tie_embeddings=self._flag("tie_word_embeddings"),
            qkv_bias=bias or family == "qwen2",  # Qwen2 has these biases always and has no word for them
            output_bias=bias and family != "qwen2",
            mlp_bias=family == "llama" and self._flag("mlp_bias"),
            qk_norm=family == "qwen3",
            eos_ids=token_ids(self._data.get("eos_token_id"), f"{self._label}: eos_token_id"),
            note=note,
        )

    def _invalid(self, cause: str) -> InvalidModel:
        return InvalidModel(f"{self._label}: {cause}")

    def _family(self) -> str:
        family = self._data.get("model_type")
        architectures = self._data.get("architectures") or []
        if family not in FAMILIES or not isinstance(architectures, list):
            raise self._invalid(f"model_type {family!r} is not supported; these are: {', '.join(FAMILIES)}")
        if architectures and not set(map(str, architectures)) & set(_ARCHITECTURES):
            raise self._invalid(f"architecture {architectures[0]!r} is not supported; these are: {', '.join(_ARCHITECTURES)}")
        if self._data.get("quantization_config"):
            raise self._invalid("quantised safetensors are not supported; use plain weights or a GGUF file")
        if self._data.get("hidden_act", "silu") not in ("silu", "swish"):
            raise self._invalid(f"hidden_act {self._data['hidden_act']!r} is not supported; only silu is")
        if self._data.get("rope_interleaved"):
            raise self._invalid("rope_interleaved is not supported")
        return str(family)

    def _integer(self, name: str, high: int, default: int | None = None) -> int:
        value = self._data.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
            raise self._invalid(f"{name} must be an integer in [1, {high}], got {value!r}")
        return value

    def _number(self, data: Mapping[str, object], name: str, default: float | None = None) -> float:
        value = data.get(name)
        value = default if value is None else value
        sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
        if not sound:
            raise self._invalid(f"{name} must be a finite positive number, got {value!r}")
        return float(value)  # type: ignore[arg-type]

    def _flag(self, name: str) -> bool:
        value = self._data.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._invalid(f"{name} must be true or false, got {value!r}")
        return bool(value)

    def _context(self, family: str) -> tuple[int, str | None]:
        positions = self._integer("max_position_embeddings", _MAX_POSITIONS)
        slides = family == "mistral" or (family.startswith("qwen") and self._flag("use_sliding_window"))
        if not slides or self._data.get("sliding_window") is None:
            return positions, None
        window = self._integer("sliding_window", 2**31)
        if window >= positions:
            return positions, None
        return window, f"context capped at {window} of {positions} tokens: the model's sliding window is not implemented"

    def _rope(self) -> Rope:
        # transformers 5 keeps all in rope_parameters; older files have rope_theta beside an optional rope_scaling.
        given = self._data.get("rope_parameters") or self._data.get("rope_scaling") or {}
        if not isinstance(given, Mapping):
            raise self._invalid(f"the rope parameters must be an object, got {given!r}")
        kind = given.get("rope_type", given.get("type", "default"))
        theta_from = given if given.get("rope_theta") is not None else self._data
        theta = self._number(theta_from, "rope_theta", default=10000.0)
        for place in (given, self._data):
            if place.get("partial_rotary_factor", 1.0) not in (None, 1.0):
                raise self._invalid("a partial_rotary_factor other than 1 is not supported")
        if kind == "default":
            return Rope(theta)
        if kind == "linear":
            return Rope(theta, LinearScaling(self._number(given, "factor")))
        if kind == "llama3":
            low, high = self._number(given, "low_freq_factor"), self._number(given, "high_freq_factor")
            if high <= low:
                raise self._invalid(f"high_freq_factor {high:g} must exceed low_freq_factor {low:g}")
            original = int(self._number(given, "original_max_position_embeddings"))
            return Rope(theta, Llama3Scaling(self._number(given, "factor"), low, high, original))
        raise self._invalid(f"rope scaling {kind!r} is not supported; these are: default, linear, llama3")


def token_ids(value: object, label: str) -> tuple[int, ...]:
    """Read a token id, a list of them or null, as config files write end-of-text ids; raises InvalidModel otherwise."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise InvalidModel(f"{label}: must be a token id or a list of them, got {value!r}")
    return tuple(dict.fromkeys(ids))
