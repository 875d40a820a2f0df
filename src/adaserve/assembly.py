"""Puts an engine together from decoders in memory."""

from dataclasses import dataclass

from adaserve.clock import Clock
from adaserve.engine import Engine
from adaserve.executor.device import DeviceExecutor
from adaserve.latency import LatencyModel, Profile
from adaserve.models.decoder import Decoder
from adaserve.pages import PagePool
from adaserve.policy.policy import Policy
from adaserve.scheduling.scheduler import Drafting, Scheduler
from adaserve.speculation.drafter import Drafter
from adaserve.speculation.lookup import LookupDrafter
from adaserve.speculation.model import ModelDrafter
from adaserve.speculation.ngram import NgramDrafter


@dataclass(frozen=True)
class Models:
    """What an engine computes with: the target, and what drafts for it (a decoder, prompt look-up, or nothing).

    draft_vocabulary: how many tokens, from the first on, the draft model may propose; None for all.
    """

    target: Decoder
    draft: Decoder | None = None
    lookup: bool = False
    draft_vocabulary: int | None = None


@dataclass(frozen=True)
class Sizes:
    """How much an engine holds: slots (requests at once), tokens of the longest sequence, pages of the cache."""

    slots: int
    length: int
    pages: int
    page_size: int


def make_executor(models: Models, sizes: Sizes, clock: Clock) -> DeviceExecutor:
    """Give the models their KV pools and wire the drafter."""
    pages = {"pages": sizes.pages, "page_size": sizes.page_size, "slots": sizes.slots}
    drafter: Drafter | None = None
    if models.draft is not None:
        drafter = ModelDrafter(models.draft, models.draft.new_pool(**pages), sizes.slots, models.draft_vocabulary)
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
