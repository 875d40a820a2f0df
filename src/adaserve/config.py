"""What an engine is started with. Complete at construction; names follow vLLM where the meaning is the same."""

from dataclasses import dataclass

from adaserve.errors import InvalidConfig

DTYPES = ("auto", "bfloat16", "float32", "float64")
DEVICES = ("auto", "cpu", "cuda")
ORDERS = ("neediest", "easiest", "attainable")
LOOKUPS = ("own", "tenant")
BESIDE = "+ngram"
"""What names look-up beside a draft model."""


@dataclass(frozen=True)
class EngineConfig:
    """Options of one engine.

    model: folder or hub id in Hugging Face layout, a .gguf file, or a known name such as `demo`.
    draft: a model like `model`, `ngram`, both in one tree as `MODEL+ngram`, `none`, or None for the model's own known draft (the
        demo has one), else none.
    lookup: in which texts `ngram` looks: `own`, the request's alone, or `tenant`, also those of requests with the same API key.
    draft_vocabulary: how many tokens, from the first on, a draft model may propose; 0 for all, None for what suits the device.
    dtype: type of the weights; `auto` is bfloat16. On a CPU activations and logits are float32 beside bfloat16 weights.
    policy: a name from adaserve.policy.
    max_model_len: most tokens of prompt and output together; None for what the model and the cache can hold.
    max_num_seqs: most requests that run at once.
    kv_tokens: tokens that the KV cache holds; None for what suits the machine.
    page_size: tokens a page.
    chunk_rows: most prompt rows a step; None lets the policy choose.
    budget, depth, width: rows of a verification pass, draft steps, beam width; None lets the policy choose.
    max_queue: requests that may wait before more are refused.
    seed: where the seeds of requests without their own come from.
    threads: CPU threads; None for all cores.
    tensor_parallel_size: devices that share the target, a process each; on a CPU as many processes share the threads.
    profile: a file of measured step times; None for the cached one, or a measurement at the first start.
    tuning: a file of tuned policy constants; None for the cached ones, else those shipped for a known model, else what the
        profile suggests.
    coupled: whether a draft model ranks candidates by the noise of the target's draws; None leaves it to the policy.
    order: whom the SLO phase of the policy `adaserve` serves first: `neediest` (the paper), `easiest` or `attainable`.
    Raises InvalidConfig for values that make no sense.
    """

    model: str = "demo"
    draft: str | None = None
    draft_vocabulary: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    policy: str = "adaserve+"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    kv_tokens: int | None = None
    page_size: int = 16
    chunk_rows: int | None = None
    budget: int | None = None
    depth: int | None = None
    width: int | None = None
    prefix_caching: bool = True
    max_queue: int = 1024
    seed: int = 0
    threads: int | None = None
    tensor_parallel_size: int = 1
    profile: str | None = None
    tuning: str | None = None
    order: str = "neediest"
    coupled: bool | None = None
    lookup: str = "own"

    @property
    def draft_model(self) -> str | None:
        """`draft` without look-up beside a model."""
        return None if self.draft is None else self.draft.removesuffix(BESIDE)

    @property
    def looks_up(self) -> bool:
        """Whether text is looked up, alone or beside a draft model."""
        return self.draft is not None and (self.draft == "ngram" or self.draft.endswith(BESIDE))

    def __post_init__(self) -> None:
        def require(condition: bool, message: str) -> None:
            if not condition:
                raise InvalidConfig(message)

        require(self.dtype in DTYPES, f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        require(self.order in ORDERS, f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")
        require(self.lookup in LOOKUPS, f"lookup must be one of {', '.join(LOOKUPS)}, got {self.lookup!r}")
        require(
            self.lookup == "own" or self.looks_up,
            f"lookup {self.lookup!r} needs a draft that looks text up: ngram, or MODEL{BESIDE}",
        )
        require(self.device in DEVICES, f"device must be one of {', '.join(DEVICES)}, got {self.device!r}")
        require(
            self.draft_model not in ("", "none", "ngram") or self.draft == self.draft_model,
            f"draft {self.draft!r} names no model: write MODEL{BESIDE}, or ngram alone",
        )
        for name in ("max_num_seqs", "page_size", "max_queue", "tensor_parallel_size"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_model_len", "kv_tokens", "chunk_rows", "budget", "width", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        vocabulary = self.draft_vocabulary or 0
        require(
            vocabulary >= 0 and vocabulary % 16 == 0, f"draft_vocabulary must be a multiple of 16, got {self.draft_vocabulary}"
        )
        require(self.depth is None or 0 <= self.depth <= 63, f"depth must be between 0 and 63, got {self.depth}")
        require(
            (self.depth or 0) * (self.width or 1) <= 63,
            "depth times width must be at most 63: a tree's ancestor mask is one 64-bit word",
        )
