"""Measures a machine: the step-time curves of an executor, and the baseline latency through a whole engine."""

import random
from collections.abc import Callable
from dataclasses import replace
from statistics import median

from adaserve.assembly import Models, Sizes, assemble_engine
from adaserve.clock import WallClock
from adaserve.engine import Engine
from adaserve.errors import InvalidModel
from adaserve.executor.executor import Executor
from adaserve.executor.profiler import Profiler
from adaserve.padding import GraphPadding
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import make_policy
from adaserve.profile import Profile
from adaserve.request import Request, SamplingParams, Targets


def measure_profile(models: Models, sizes: Sizes, executor: Executor, name: str, progress: Callable[[str], None]) -> Profile:
    """Measure the step-time curves of an executor that serves nobody yet, then the baseline latency through a whole engine."""
    profiler = Profiler(
        executor,
        slots=sizes.slots,
        pages=sizes.pages,
        page_size=sizes.page_size,
        length=sizes.length,
        vocab_size=models.target.config.vocab_size,
        drafts=models.draft is not None,
        device=models.target.device,
    )
    curves = profiler.curves(progress)
    profile = Profile(
        name=name,
        source="measured by adaserve profile",
        verify_ms_by_rows={rows: seconds * 1e3 for rows, seconds in curves.verify.items()},
        attention_ms_per_1000_context_tokens=curves.attention * 1e6,
        draft_step_ms_by_rows={rows: seconds * 1e3 for rows, seconds in curves.draft.items()},
        draft_next_ms_by_rows={rows: seconds * 1e3 for rows, seconds in curves.draft_next.items()},
        draft_attention_ms_per_1000_context_tokens=curves.draft_attention * 1e6,
        prompt_saves_ms_by_rows={rows: seconds * 1e3 for rows, seconds in curves.prompt_saves.items()},
        after_draft_ms=curves.after_draft * 1e3,
        step_overhead_ms=curves.overhead * 1e3,
        residual_cv=curves.spread,
        baseline_ms_per_token=curves.verify[1] * 1e3,
        padded=isinstance(executor.padding, GraphPadding),
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
    if len(found) <= repeats:
        raise InvalidModel("the model's output is not finite: its weights are broken, or the dtype does not suit it")
    return median(found[1:])
