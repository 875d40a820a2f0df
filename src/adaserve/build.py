"""Builds an engine out of its parts: from models on disk (`build_engine`), or from decoders in memory (`assemble_engine`)."""

import hashlib
import json
import os
import platform
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from adaserve.cache.pool import KVPool

from adaserve.clock import Clock, WallClock
from adaserve.config import EngineConfig
from adaserve.engine import Engine
from adaserve.errors import InvalidConfig
from adaserve.executor.device import DeviceExecutor
from adaserve.executor.profiler import Profiler
from adaserve.kernels.native import native_status
from adaserve.latency import LatencyModel, Profile, budget_from
from adaserve.models.decoder import Decoder
from adaserve.models.load import load_decoder, load_draft
from adaserve.models.registry import ModelSource, cache_folder, resolve, resolve_draft
from adaserve.models.tokenizer import Tokenizer, load_tokenizer
from adaserve.pages import PagePool
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import Overrides, make_policy
from adaserve.policy.policy import Policy
from adaserve.request import Request, SamplingParams, Targets
from adaserve.runtime.batch import TAIL_ROWS
from adaserve.scheduling.scheduler import Drafting, Scheduler
from adaserve.speculation.drafter import Drafter
from adaserve.speculation.lookup import LookupDrafter
from adaserve.speculation.model import ModelDrafter
from adaserve.speculation.ngram import NgramDrafter

CPU_CACHE_BYTES = 2 << 30
CUDA_CACHE_SHARE = 0.85
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Models:
    """What an engine computes with: the target, and what drafts for it (a decoder, prompt look-up, or nothing)."""

    target: Decoder
    draft: Decoder | None = None
    lookup: bool = False


@dataclass(frozen=True)
class Sizes:
    """How much an engine holds: slots (requests at once), tokens of the longest sequence, pages of the cache."""

    slots: int
    length: int
    pages: int
    page_size: int


@dataclass(frozen=True)
class BuiltEngine:
    """An engine and what its faces need to know about it. `baseline` is in seconds per token."""

    engine: Engine
    tokenizer: Tokenizer
    model_name: str
    max_model_len: int
    baseline: float
    eos_ids: tuple[int, ...]
    vocab_size: int
    policy: Policy
    profile: Profile
    description: str


def make_executor(models: Models, sizes: Sizes, clock: Clock) -> DeviceExecutor:
    """Give the models their KV pools and wire the drafter."""
    pages = {"pages": sizes.pages, "page_size": sizes.page_size, "slots": sizes.slots}
    drafter: Drafter | None = None
    if models.draft is not None:
        drafter = ModelDrafter(models.draft, models.draft.new_pool(**pages), sizes.slots)
    elif models.lookup:
        drafter = LookupDrafter(NgramDrafter())
    return DeviceExecutor(
        target=models.target,
        pool=models.target.new_pool(**pages),
        drafter=drafter,
        slots=sizes.slots,
        length=sizes.length,
        clock=clock,
    )


def assemble_engine(
    models: Models,
    sizes: Sizes,
    policy: Policy,
    profile: Profile,
    *,
    clock: Clock,
    executor: DeviceExecutor | None = None,
    prefix_caching: bool = True,
) -> Engine:
    """Build an engine from decoders in memory. `executor`: one made before for these models and sizes, or None to make it."""
    latency = LatencyModel(profile)
    scheduler = Scheduler(
        policy=policy,
        latency=latency,
        pages=PagePool(sizes.pages, sizes.page_size),
        slots=sizes.slots,
        drafting=Drafting.MODEL if models.draft else Drafting.LOOKUP if models.lookup else Drafting.NONE,
        reuse_prefixes=prefix_caching,
    )
    return Engine(
        scheduler=scheduler,
        policy=policy,
        executor=executor or make_executor(models, sizes, clock),
        latency=latency,
        clock=clock,
        baseline=latency.baseline,
    )


def measure_profile(models: Models, sizes: Sizes, executor: DeviceExecutor, name: str, progress: Callable[[str], None]) -> Profile:
    """Measure the step-time curves of an executor that serves nobody yet, then the baseline latency through a whole engine."""
    profiler = Profiler(
        executor,
        slots=sizes.slots,
        pages=sizes.pages,
        page_size=sizes.page_size,
        length=sizes.length,
        vocab_size=models.target.config.vocab_size,
        drafts=models.draft is not None,
    )
    curves = profiler.curves(progress)
    profile = Profile(
        name=name,
        source="measured by adaserve profile",
        verify_ms_by_rows={rows: seconds * 1e3 for rows, seconds in curves.verify.items()},
        attention_ms_per_1000_context_tokens=curves.attention * 1e6,
        draft_step_ms_by_rows={rows: seconds * 1e3 for rows, seconds in curves.draft.items()},
        draft_attention_ms_per_1000_context_tokens=curves.draft_attention * 1e6,
        step_overhead_ms=curves.overhead * 1e3,
        residual_cv=0.05,
        baseline_ms_per_token=curves.verify[1] * 1e3,
    )
    plain = make_policy("continuous", Constants(verify_rows=1, draft_rows=0))
    engine = assemble_engine(models, sizes, plain, profile, clock=WallClock(), executor=executor, prefix_caching=False)
    baseline = measure_baseline(engine, models.target.config.vocab_size, min(64, sizes.length // 2), min(32, sizes.length // 4))
    progress(f"baseline: {baseline * 1e3:.1f} ms per token")
    return replace(profile, baseline_ms_per_token=baseline * 1e3)


def measure_baseline(engine: Engine, vocab_size: int, prompt: int, output: int, repeats: int = 3) -> float:
    """TPOT in seconds of one request alone on an engine that does not speculate; the median of some repeats."""
    found = []
    draw = random.Random(0)
    for repeat in range(repeats + 1):
        request = Request(
            id=f"baseline-{repeat}",
            prompt=tuple(draw.choices(range(vocab_size), k=prompt)),
            sampling=SamplingParams(max_tokens=output, temperature=0.0),
            targets=Targets(),
            seed=0,
            arrived=engine.clock.now(),
        )
        engine.add(request)
        while (report := engine.step()) is not None:
            found += [u.result.tpot for u in report.updates if u.result is not None and u.result.tpot is not None]
    return median(found[1:])


@dataclass(frozen=True)
class Parts:
    """Everything about an engine but its policy: engines with different policies can be made of the same parts, one at a time."""

    config: EngineConfig
    models: Models
    sizes: Sizes
    executor: DeviceExecutor
    tokenizer: Tokenizer
    profile: Profile
    clock: Clock
    description: str

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Token ids that end a text, by the model's config or its tokenizer."""
        return tuple(sorted({*self.models.target.config.eos_ids, *self.tokenizer.eos_ids}))

    def engine(self, policy: Policy) -> Engine:
        """Make an engine with this policy and empty queues; the executor must have no other user."""
        return assemble_engine(
            self.models,
            self.sizes,
            policy,
            self.profile,
            clock=self.clock,
            executor=self.executor,
            prefix_caching=self.config.prefix_caching,
        )

    def policy(self, name: str | None = None, constants: Constants | None = None) -> Policy:
        """Make the named policy, or the config's, with the config's overrides and the machine's constants."""
        config = self.config
        overrides = Overrides(config.budget, config.depth, config.width, config.chunk_rows)
        return make_policy(name or config.policy, constants or machine_constants(config, self.profile), overrides)


def load_parts(config: EngineConfig, progress: Callable[[str], None], *, measure: bool = False) -> Parts:
    """Load the models, size the cache, and profile the machine if it is the first time or `measure` says so."""
    make_policy(config.policy, Constants(verify_rows=1, draft_rows=1))  # a wrong name should fail before the slow part
    device, dtype = _device(config), DTYPES["bfloat16" if config.dtype == "auto" else config.dtype]
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    source = resolve(config.model)
    draft_source = _draft_source(config, source)
    progress(f"loading {source.path}")
    target = load_decoder(source, dtype=dtype, device=device)
    draft = None
    if isinstance(draft_source, ModelSource):
        progress(f"loading draft {draft_source.path}")
        draft = load_draft(draft_source, target, dtype=dtype)
    models = Models(target, draft, lookup=draft_source == "ngram")
    tokenizer = load_tokenizer(source)
    sizes = _sizes(config, models)
    clock = WallClock()
    executor = make_executor(models, sizes, clock)
    path = cache_folder() / "profiles" / f"{fingerprint(config, source, draft_source)}.json"
    profile = None if measure else _known_profile(config, path, progress)
    if profile is None:
        progress("measuring step times, once for these models on this machine")
        profile = measure_profile(models, sizes, executor, source.name, progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        profile.save(path)
    drafter = "look-up" if models.lookup else "no draft" if draft is None else f"{draft.config.layers}-layer draft"
    words = f"{config.model} on {device.type}, {str(dtype).removeprefix('torch.')}, {drafter}, kernels {native_status()}"
    return Parts(config, models, sizes, executor, tokenizer, profile, clock, words)


def build_engine(config: EngineConfig, progress: Callable[[str], None] = lambda line: None) -> BuiltEngine:
    """Put an engine together, from models on disk to the first step.

    `progress` hears one line per stage. Raises ModelNotFound, InvalidModel or InvalidConfig with one line that says what to do.
    """
    parts = load_parts(config, progress)
    policy = parts.policy()
    return BuiltEngine(
        engine=parts.engine(policy),
        tokenizer=parts.tokenizer,
        model_name=config.model,
        max_model_len=parts.sizes.length,
        baseline=parts.profile.baseline_ms_per_token / 1e3,
        eos_ids=parts.eos_ids,
        vocab_size=parts.models.target.config.vocab_size,
        policy=policy,
        profile=parts.profile,
        description=f"{parts.description}, policy {policy.name}",
    )


def _device(config: EngineConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("no CUDA device was found: use --device cpu")
    # The CUDA executor is not there yet, so `auto` stays on the CPU, where everything is tested.
    return torch.device("cpu" if config.device == "auto" else config.device)


def _draft_source(config: EngineConfig, source: ModelSource) -> ModelSource | str | None:
    """The draft model's source, "ngram" for prompt look-up, or None."""
    if config.draft == "none":
        return None
    if config.draft == "ngram":
        return "ngram"
    if config.draft is not None:
        return resolve_draft(config.draft)
    return resolve_draft(source.name) if source.draft is not None else None


def _sizes(config: EngineConfig, models: Models) -> Sizes:
    """Slots, pages and the longest sequence, from what is asked for and what the memory holds."""
    token_bytes = sum(
        KVPool.row_bytes(
            layers=m.config.layers, heads=m.config.kv_heads, head_dim=m.config.head_dim, dtype=m.dtype
        )
        for m in (models.target, models.draft)
        if m is not None
    )
    room = CPU_CACHE_BYTES
    if models.target.device.type == "cuda":
        room = int(torch.cuda.mem_get_info()[0] * CUDA_CACHE_SHARE)
    slots = config.max_num_seqs
    spare = room // token_bytes - slots * TAIL_ROWS
    tokens = config.kv_tokens or max(0, min(spare, slots * models.target.max_positions))
    length = min(config.max_model_len or models.target.max_positions, models.target.max_positions)
    if config.max_model_len is None:
        length = min(length, tokens)
    if length < 2 or tokens < length:
        raise InvalidConfig(
            f"the KV cache holds {tokens} tokens, fewer than one sequence of {length}: "
            "lower --max-model-len or --max-num-seqs, or raise --kv-tokens"
        )
    # One page more than the tokens fill, for a sequence that ends inside a page.
    return Sizes(slots, length, -(-tokens // config.page_size) + 1, config.page_size)


def _known_profile(config: EngineConfig, path: Path, progress: Callable[[str], None]) -> Profile | None:
    """The profile named by the config, or the cached one; None if there is no usable one."""
    if config.profile is not None:
        return Profile.load(config.profile)
    if not path.is_file():
        return None
    try:
        return Profile.load(path)
    except InvalidConfig as error:
        progress(f"the cached profile is of no use: {error}")
        return None


def fingerprint(config: EngineConfig, source: ModelSource, draft: ModelSource | str | None) -> str:
    """A name for this model pair on this machine: whatever changes step times changes it."""

    def stamp(path: Path) -> list[object]:
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]

    facts = [
        stamp(source.path),
        stamp(draft.path) if isinstance(draft, ModelSource) else draft,
        config.dtype,
        config.device,
        config.threads,
        config.max_num_seqs,
        platform.processor() or platform.machine(),
        os.cpu_count(),
        torch.__version__,
        native_status(),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def machine_constants(config: EngineConfig, profile: Profile) -> Constants:
    """The policy's constants: a tuned file if one is named, else derived from the profile."""
    if config.tuning is not None:
        return load_constants(config.tuning)
    budgets = budget_from(profile, requests=1)
    return Constants(verify_rows=budgets.verify, draft_rows=budgets.draft)


def load_constants(path: Path | str) -> Constants:
    """Read constants that `adaserve tune` found; raises InvalidConfig for a file that is missing, broken or of unknown fields."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        return Constants(**data["constants"])
    except OSError as error:
        raise InvalidConfig(f"cannot read tuning {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidConfig(f"tuning {path} is not what `adaserve tune` writes: {error}") from error
