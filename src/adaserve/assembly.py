"""Puts an engine together from decoders in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from adaserve.attention.paged import prepare
from adaserve.cache.pool import KVPool
from adaserve.clock import Clock
from adaserve.engine import Engine
from adaserve.executor.check import TreeCheck
from adaserve.executor.device import DeviceExecutor
from adaserve.executor.executor import Executor
from adaserve.kernels.gpu import KERNEL_DTYPES, choose_library
from adaserve.latency import LatencyModel
from adaserve.models.decoder import Decoder
from adaserve.pages import PagePool
from adaserve.policy.policy import Policy
from adaserve.profile import Profile
from adaserve.purse import Choose, Purse
from adaserve.runtime.batch import TAIL_ROWS
from adaserve.runtime.capture import Capture, GraphCapture, Plainly
from adaserve.runtime.passes import GraphPasses, Passes, PlainPasses
from adaserve.runtime.slots import SlotTable
from adaserve.runtime.stopwatch import ClockStopwatch, EventStopwatch
from adaserve.runtime.table import SamplingTable
from adaserve.scheduling.scheduler import Drafting, Scheduler
from adaserve.speculation.drafter import Drafter
from adaserve.speculation.lookup import LookupDrafter
from adaserve.speculation.mixed import MixedDrafter
from adaserve.speculation.model import ModelDrafter
from adaserve.speculation.ngram import NgramDrafter
from adaserve.speculation.recall import TenantMemories
from adaserve.step import Chunk, Limits
from adaserve.tree import CandidateTree


@dataclass(frozen=True)
class Models:
    """What an engine computes with: the target, and what drafts for it (a decoder, prompt look-up, both in one tree, or nothing).

    draft_vocabulary: how many tokens, from the first on, the draft model may propose; None for all.
    recalls: whether look-up also finds what requests of the same tenant said, and not the request's own text alone.
    """

    target: Decoder
    draft: Decoder | None = None
    lookup: bool = False
    draft_vocabulary: int | None = None
    recalls: bool = False


@dataclass(frozen=True)
class Sizes:
    """How much an engine holds: slots (requests at once), tokens of the longest sequence, pages of the cache."""

    slots: int
    length: int
    pages: int
    page_size: int


def make_executor(
    models: Models,
    sizes: Sizes,
    clock: Clock,
    *,
    padded: bool | None = None,
    capture: Callable[[torch.device], Capture] | None = None,
) -> DeviceExecutor:
    """Give the models their KV pools and wire the drafter.

    padded: whether batches are padded to shapes that the host knows beforehand, at the cost of one spare slot and page; None
    for what suits the device. A GPU's graphs need it. capture: makes what runs captured calls; None for what suits the device.
    """
    device = models.target.device
    gpu = device.type == "cuda"
    spare = gpu if padded is None else padded
    pages = {"pages": sizes.pages + spare, "page_size": sizes.page_size, "slots": sizes.slots + spare}
    table = SlotTable(
        slots=sizes.slots,
        length=sizes.length,
        page_size=sizes.page_size,
        device=device,
        spare_page=sizes.pages if spare else None,
    )

    graphs = gpu and models.target.dtype in KERNEL_DTYPES  # the twins of the kernels ask the device
    if graphs:
        choose_library()

    make = capture or (GraphCapture if graphs else Plainly)  # one for each kind of call: its results outlast the others' calls

    def passes(decoder: Decoder, pool: KVPool) -> Passes:
        if not graphs:
            return PlainPasses(decoder, pool)
        first = table.known_batch([Chunk(sizes.slots, 0, 1)], pool.tail_start)  # the spare slot's
        prepare(pool.keys[0], pool.values[0], first, decoder.config.heads // decoder.config.kv_heads)
        decoder.prepare()
        return GraphPasses(decoder, pool, pool.tail_start + sizes.slots * TAIL_ROWS)

    drafter: Drafter | None = None
    if models.draft is not None:
        pool = models.draft.new_pool(**pages)
        model = ModelDrafter(models.draft, pool, passes(models.draft, pool), make(device), sizes.slots, models.draft_vocabulary)
        if graphs:
            model.compile_all()
        drafter = MixedDrafter(model, _lookup(models)) if models.lookup else model
    elif models.lookup:
        drafter = _lookup(models)
    pool = models.target.new_pool(**pages)
    sampling = SamplingTable(table.known.shape[0], models.target.config.vocab_size, device)
    check = TreeCheck(models.target, pool, passes(models.target, pool), make(device), drafter, table, sampling)
    if gpu and spare:
        check.prepare()
    return DeviceExecutor(
        check=check,
        choosing=make(device),
        drafter=drafter,
        table=table,
        sampling=sampling,
        clock=clock,
        watch=partial(EventStopwatch, torch.cuda.current_stream(device)) if gpu else partial(ClockStopwatch, clock),
    )


def _lookup(models: Models) -> LookupDrafter:
    return LookupDrafter(NgramDrafter(memories=TenantMemories() if models.recalls else None))


@torch.inference_mode()
def _choose_once(choose: Choose, device: torch.device) -> None:
    """Have the selection's kernels compiled, so that no request waits for it."""
    node = torch.zeros(1, 1, dtype=torch.int64, device=device)  # [1, 1]
    nothing = torch.zeros(1, dtype=torch.float64, device=device)  # [1]
    choose(CandidateTree(node, node - 1, node + 1, node.double(), node), nothing, Purse.of(Limits(1, 1, 1), device), nothing)


def _drafting(models: Models) -> Drafting:
    if models.draft is None:
        return Drafting.LOOKUP if models.lookup else Drafting.NONE
    return Drafting.BOTH if models.lookup else Drafting.MODEL


def assemble_engine(
    models: Models,
    sizes: Sizes,
    policy: Policy,
    profile: Profile,
    *,
    clock: Clock,
    executor: Executor | None = None,
    prefix_caching: bool = True,
) -> Engine:
    """Build an engine from decoders in memory. `executor`: one made before for these models and sizes, or None to make it."""
    latency = LatencyModel(profile)
    executor = executor or make_executor(models, sizes, clock)
    executor.forget()
    if models.target.device.type == "cuda":
        _choose_once(policy.selection, models.target.device)
    scheduler = Scheduler(
        policy=policy,
        latency=latency,
        pages=PagePool(sizes.pages, sizes.page_size),
        slots=sizes.slots,
        drafting=_drafting(models),
        reuse_prefixes=prefix_caching,
        padding=executor.padding,
        runs_ahead=executor.runs_ahead,
    )
    return Engine(
        scheduler=scheduler,
        policy=policy,
        executor=executor,
        latency=latency,
        clock=clock,
        baseline=latency.baseline,
    )
