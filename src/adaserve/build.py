"""Builds an engine from models on disk: `build_engine` for the faces, `load_parts` for those who try several policies."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from adaserve.assembly import Models, Sizes, assemble_engine, make_executor
from adaserve.cache.pool import KVPool
from adaserve.clock import Clock, WallClock
from adaserve.config import EngineConfig
from adaserve.devices import compute_with, device_of, dtype_of, threads_of
from adaserve.engine import Engine
from adaserve.errors import InvalidConfig
from adaserve.executor.executor import Executor
from adaserve.kernels.native import native_status
from adaserve.measure import measure_profile
from adaserve.models.decoder import Decoder
from adaserve.models.load import load_decoder, load_draft
from adaserve.models.tokenizer import Tokenizer, load_tokenizer
from adaserve.pair import Pair, memory_path, pair_of, profile_path
from adaserve.parallel.group import ALONE
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import Overrides, make_policy
from adaserve.policy.memory import load_memory, save_memory
from adaserve.policy.policy import Policy
from adaserve.profile import Profile
from adaserve.runtime.batch import TAIL_ROWS
from adaserve.step import Order
from adaserve.tuning import load_constants, machine_constants

if TYPE_CHECKING:
    from adaserve.parallel.world import World  # needs msgspec, which an engine in one process does not

CPU_CACHE_BYTES = 2 << 30
CUDA_CACHE_SHARE = 0.85
LEAST_LENGTH = 16
CPU_DRAFT_VOCABULARY = 16384
"""93% of SmolLM2's tokens in code, chat and articles are among the first third of its vocabulary (docs/log.md)."""


@dataclass(frozen=True)
class BuiltEngine:
    """An engine and what its faces need to know about it. `baseline` is in seconds per token; slots: most requests at once.

    world: the ranks that share the target, or None. memory: the file in which `close` keeps what the policy learned, over what
    was there; None if that is nothing.
    """

    engine: Engine
    tokenizer: Tokenizer
    model_name: str
    max_model_len: int
    baseline: float
    eos_ids: tuple[int, ...]
    vocab_size: int
    policy: Policy
    profile: Profile
    slots: int
    description: str
    world: "World | None" = None
    memory: Path | None = None

    def close(self) -> None:
        """Keep what the policy learned, where there is a place for it, and end the processes of other ranks.

        Harmless when done before.
        """
        self.engine.learn()
        if self.memory is not None and self.policy.memory is not None:
            with suppress(OSError):  # a cache that cannot be written costs nothing but the learning
                save_memory(self.policy.memory, self.memory)
        if self.world is not None:
            self.engine.close()
            self.world.close()


@dataclass(frozen=True)
class Parts:
    """Everything about an engine but its policy: engines with different policies can be made of the same parts, one at a time.

    world: the ranks that share the target, or None.
    """

    config: EngineConfig
    models: Models
    sizes: Sizes
    executor: Executor
    tokenizer: Tokenizer
    profile: Profile
    clock: Clock
    description: str
    world: "World | None" = None

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

    def close(self) -> None:
        """End the processes of other ranks, if there are any; harmless when done before."""
        if self.world is not None:
            self.executor.close()
            self.world.close()

    def with_config(self, config: EngineConfig) -> "Parts":
        """The same parts under another config, of which only what concerns the policy takes effect."""
        return replace(self, config=config)

    def policy(self, name: str | None = None, constants: Constants | None = None) -> Policy:
        """Make the named policy, or the config's, with the config's overrides and the machine's constants."""
        name = name or self.config.policy
        return make_policy(name, constants or machine_constants(self.config, self.profile, name), _overrides(self.config))


def load_parts(config: EngineConfig, progress: Callable[[str], None], *, measure: bool = False) -> Parts:
    """Load the models, size the cache, and profile the machine if it is the first time or `measure` says so."""
    device, dtype, threads = device_of(config), dtype_of(config), threads_of(config)
    # What is wrong with the policy and the files that the config names should show before the slow part.
    constants = Constants(verify_rows=1, draft_rows=1) if config.tuning is None else load_constants(config.tuning, config.policy)
    make_policy(config.policy, constants, _overrides(config))
    stated = None if config.profile is None or measure else Profile.load(config.profile)
    compute_with(max(1, threads // config.tensor_parallel_size), dtype)
    pair, world = pair_of(config), None
    if config.tensor_parallel_size > 1:
        try:
            from adaserve.parallel.world import open_world
        except ImportError as error:
            raise InvalidConfig(f"several ranks need {error.name}; run: pip install 'adaserve[server]'") from error
        size = config.tensor_parallel_size
        progress(f"starting {size} ranks")
        world = open_world(pair.target, size=size, dtype=dtype, device=device, threads=max(1, threads // size))
    try:
        return _load_parts(config, pair, world, device, dtype, progress, stated, measure)
    except BaseException as error:
        if world is not None:
            world.close()
        if not isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise InvalidConfig(
            "the GPU's memory does not hold these models and their cache: lower --kv-tokens, --max-num-seqs or --max-model-len, "
            "end what else uses the GPU, or take a smaller model"
        ) from error


def _load_parts(
    config: EngineConfig,
    pair: Pair,
    world: "World | None",
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[str], None],
    profile: Profile | None,
    measure: bool,
) -> Parts:
    progress(f"loading {pair.target.path}")
    target = load_decoder(pair.target, dtype=dtype, device=device, group=ALONE if world is None else world.group)
    draft = None
    if pair.draft is not None:
        progress(f"loading draft {pair.draft.path}")
        draft = load_draft(pair.draft, target, dtype=dtype, owner=pair.target)
    models = Models(target, draft, config.looks_up, _draft_vocabulary(config, target), recalls=config.lookup == "tenant")
    tokenizer = load_tokenizer(pair.target)
    sizes = _sizes(config, models, [] if world is None else world.rooms())
    clock = WallClock()
    executor: Executor = make_executor(models, sizes, clock)
    if world is not None:
        executor = world.lead(executor, sizes.slots, sizes.length, sizes.pages, sizes.page_size)
    path = profile_path(config, pair)
    if profile is None and not measure:
        profile = _cached_profile(path, progress)
    if profile is None:
        progress("measuring step times, once for these models on this machine")
        profile = measure_profile(models, sizes, executor, pair.target.name, progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        profile.save(path)
    drafters = [] if draft is None else [f"{draft.config.layers}-layer draft"]
    drafter = " and ".join([*drafters, *["look-up by tenant" if models.recalls else "look-up"] * models.lookup]) or "no draft"
    kernels = "Triton" if device.type == "cuda" else native_status()
    where = device.type if world is None else f"{world.group.size} x {device.type}"
    words = f"{config.model} on {where}, {str(dtype).removeprefix('torch.')}, {drafter}, kernels {kernels}"
    return Parts(config, models, sizes, executor, tokenizer, profile, clock, words, world)


def build_engine(config: EngineConfig, progress: Callable[[str], None] = lambda line: None) -> BuiltEngine:
    """Put an engine together, from models on disk to the first step.

    `progress` hears one line per stage. Raises ModelNotFound, InvalidModel or InvalidConfig with one line that says what to do.
    """
    parts = load_parts(config, progress)
    try:
        return _build_engine(config, parts, progress)
    except BaseException:
        parts.close()
        raise


def _build_engine(config: EngineConfig, parts: Parts, progress: Callable[[str], None]) -> BuiltEngine:
    policy = parts.policy()
    memory = None
    if policy.memory is not None:
        memory = memory_path(config, policy)
        load_memory(policy.memory, memory, progress)
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
        slots=parts.sizes.slots,
        description=f"{parts.description}, policy {policy.name}",
        world=parts.world,
        memory=memory,
    )


def _overrides(config: EngineConfig) -> Overrides:
    """What the config says of a policy's constants."""
    return Overrides(config.budget, config.depth, config.width, config.chunk_rows, Order(config.order), config.coupled)


def _draft_vocabulary(config: EngineConfig, target: Decoder) -> int | None:
    """How many tokens the draft may propose: on a CPU its head costs more than its layers, so not all of a large vocabulary."""
    wanted = config.draft_vocabulary
    if wanted is None:
        wanted = CPU_DRAFT_VOCABULARY if target.device.type == "cpu" else 0
    return wanted if 0 < wanted < target.config.vocab_size else None


def _sizes(config: EngineConfig, models: Models, rooms: list[int]) -> Sizes:
    """Slots, pages and the longest sequence, from what is asked for and what the memory holds; rooms: of other ranks' GPUs."""
    token_bytes = sum(
        KVPool.row_bytes(layers=m.config.layers, heads=m.config.kv_heads, head_dim=m.config.head_dim, dtype=m.kv_dtype)
        for m in (models.target, models.draft)
        if m is not None
    )
    room = CPU_CACHE_BYTES
    if models.target.device.type == "cuda":
        room = int(min([torch.cuda.mem_get_info()[0], *rooms]) * CUDA_CACHE_SHARE)
    slots = config.max_num_seqs
    spare = room // token_bytes - slots * TAIL_ROWS
    tokens = config.kv_tokens or max(0, min(spare, slots * models.target.max_positions))
    length = min(config.max_model_len or models.target.max_positions, models.target.max_positions)
    if config.max_model_len is None:
        length = min(length, tokens)
    if config.max_model_len is None and length < LEAST_LENGTH:
        raise InvalidConfig(
            f"the KV cache holds {tokens} tokens, too few to serve anything: raise --kv-tokens, or lower --max-num-seqs"
        )
    if length < LEAST_LENGTH:
        raise InvalidConfig(f"max_model_len must be at least {LEAST_LENGTH}, got {length}")
    if tokens < length:
        raise InvalidConfig(
            f"the KV cache holds {tokens} tokens, fewer than one sequence of {length}: "
            "lower --max-model-len or --max-num-seqs, or raise --kv-tokens"
        )
    # One page more than the tokens fill, for a sequence that ends inside a page.
    return Sizes(slots, length, -(-tokens // config.page_size) + 1, config.page_size)


def _cached_profile(path: Path, progress: Callable[[str], None]) -> Profile | None:
    """The profile measured before; None if there is no usable one."""
    if not path.is_file():
        return None
    try:
        return Profile.load(path)
    except InvalidConfig as error:
        progress(f"the cached profile is of no use: {error}")
        return None
