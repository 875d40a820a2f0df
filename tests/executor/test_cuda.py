"""The executor on a GPU: the first law, one synchronisation a step, and graphs that compute what plain passes do."""

import random
from dataclasses import replace

import pytest
import torch

from adaserve.assembly import Models
from adaserve.models.random import noisy_copy, random_weights, tiny_config
from adaserve.models.weights import assemble
from adaserve.policy.library import Overrides
from adaserve.request import SamplingParams
from adaserve.runtime.joined import Joined
from adaserve.runtime.passes import GraphPasses
from adaserve.runtime.slots import SlotTable
from adaserve.step import Chunk, PageGrant, Placement
from tests.devices import DEVICE, needs_gpu
from tests.engines import VOCABULARY, Setting, engine_for, random_requests, run
from tests.test_law import SAMPLING, small

pytestmark = [needs_gpu, pytest.mark.cuda]
PLAIN = Setting("continuous", draft="none", slots=1, pages=120, prefix_caching=False)
SETTINGS = {
    "continuous": Setting("continuous"),
    "chain": Setting("spec:4"),
    "adaserve": Setting("adaserve"),
    "deep and wide": Setting("adaserve", overrides=Overrides(depth=7, width=9), constants=small(verify_rows=400, per_request=63)),
    "pre-empted": Setting("adaserve", pages=40),
    "look-up": Setting("adaserve", draft="ngram"),
    "both sources": Setting("adaserve", draft="model+ngram", overrides=Overrides(depth=4, width=2)),
    "ours, coupled": Setting("adaserve+"),
}


def models(dtype: torch.dtype, seed: int = 0, scale: float = 4.0) -> Models:
    config = tiny_config(vocab_size=VOCABULARY)
    weights = random_weights(config, seed)
    weights["lm_head.weight"] = weights["lm_head.weight"] * scale
    noisy = noisy_copy(weights, 0.05, seed + 1)
    return Models(*(assemble(config, w, "tiny", dtype=dtype, device=DEVICE) for w in (weights, noisy)))


@pytest.mark.parametrize("temperature", sorted(SAMPLING))
@pytest.mark.parametrize("name", SETTINGS)
def test_law_in_float64(name: str, temperature: float) -> None:
    """Without graphs or fast products: what the padded path decides is what plain decoding decides.

    Kernels of trees and rows serve both; test_triton_law.py holds them against their twins.
    """
    requests = random_requests(random.Random(temperature), 24, SAMPLING[temperature])
    pair = models(torch.float64)
    plain = run(engine_for(pair, PLAIN), requests, check=False)
    assert run(engine_for(pair, SETTINGS[name]), requests, burst=3).tokens == plain.tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", SETTINGS)
def test_law_in_float32(name: str, temperature: float) -> None:
    """With all kernels and graphs. One token in 100,000 may differ by rounding: none of these few does."""
    torch.backends.cuda.matmul.allow_tf32 = False
    requests = random_requests(random.Random(temperature), 24, SAMPLING[temperature])
    pair = models(torch.float32)
    plain = run(engine_for(pair, PLAIN), requests, check=False)
    found = run(engine_for(pair, SETTINGS[name]), requests, burst=3)
    same = sum(found.tokens[r] == plain.tokens[r] for r in plain.tokens)
    assert same >= len(requests) - 1


def test_nothing_waits_between_speculate_and_commit() -> None:
    """One synchronisation a step: implicit ones are errors while the engine steps, but for commit's explicit one."""
    sampling = [SamplingParams(max_tokens=24, temperature=t, ignore_eos=True, top_p=p) for t, p in ((0.0, 1.0), (1.0, 0.9))]
    for name in ("adaserve", "spec:4", "continuous"):
        engine = engine_for(models(torch.float32), Setting(name))
        run(engine, random_requests(random.Random(0), 12, sampling), burst=2)  # graphs are captured, kernels compiled
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(engine, [replace(r, id=r.id + "b") for r in random_requests(random.Random(0), 12, sampling)], burst=2)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_kernels_of_trees_are_compiled_before_the_first_request() -> None:
    """Whatever is served: a compilation in the middle of it would hold up everybody."""
    from adaserve.kernels import triton_places as places
    from adaserve.kernels import triton_trees as trees
    from adaserve.policy.plus import triton_selection as selection

    compiled = [trees._pack_kernel, trees._walk_kernel, trees._pick_kernel, trees._edge_kernel]
    compiled += [places._tree_kernel, places._move_kernel, places._gain_kernel]
    compiled += [selection._worth_kernel, selection._place_kernel, selection._buy_kernel]
    pair = models(torch.float32)
    for name in ("ours, coupled", "both sources", "deep and wide"):
        engine = engine_for(pair, SETTINGS[name])
        before = [len(kernel.device_caches[0][0]) for kernel in compiled]
        run(engine, random_requests(random.Random(0), 12, SAMPLING[0.0]), burst=2)
        assert [len(kernel.device_caches[0][0]) for kernel in compiled] == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_compute_what_plain_passes_do(dtype: torch.dtype) -> None:
    decoder = models(dtype).target
    pools = [decoder.new_pool(pages=41, page_size=4, slots=5) for _ in range(2)]
    table = SlotTable(slots=4, length=40, page_size=4, device=DEVICE, spare_page=40)
    idle = pools[0].tail_start + 4 * 64
    passes = GraphPasses(decoder, pools[0], idle)
    draw = random.Random(0)
    for slot in range(4):
        tokens = tuple(draw.choices(range(VOCABULARY), k=40))
        table.place(Placement(slot, tokens, 40, SamplingParams(), 0, 0, ()))
        table.grant([PageGrant(slot, 0, tuple(range(slot * 10, slot * 10 + 10)))])
    done = [0] * 4
    while min(done) < 40:
        lengths = [min(draw.choice([0, 1, 1, 2, 7]), 40 - d) for d in done]
        chunks = [Chunk(slot, done[slot], length) for slot, length in enumerate(lengths) if length]
        done = [d + length for d, length in zip(done, lengths, strict=True)]
        if chunks:
            batch = table.known_batch(chunks, pools[0].tail_start)
            with torch.inference_mode():
                found = passes(Joined(table, None, chunks, pools[0].tail_start), max(done)).clone()
                expected = decoder.forward(batch, pools[1])
            tolerance = 1e-4 if dtype == torch.float32 else 0.1
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_drafts_lose_nothing_in_graphs() -> None:
    """The law hides drafts that were overwritten before they were verified; that fewer of them are accepted does not."""
    sampling = [SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)]
    requests = random_requests(random.Random(3), 24, sampling)
    accepted = {}
    for dtype in (torch.float64, torch.float32):  # without graphs, and with them
        accepted[dtype] = run(engine_for(models(dtype), Setting("spec:4")), requests, burst=3).accepted_per_step
    assert accepted[torch.float32] == pytest.approx(accepted[torch.float64], rel=0.02)
