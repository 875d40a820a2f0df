"""Recording: what a draft would have proposed at every position of outputs that a target has drawn."""

import numpy as np
import pytest

from adaserve.executor.recorder import NoiseOf, recorded_output
from adaserve.request import Request, SamplingParams, Targets
from tests.engines import Setting, engine_for, run, tiny_models

MODELS = tiny_models(noise=0.0)
"""The draft is the target."""


def drawn(temperature: float, seed: int) -> tuple[Request, tuple[int, ...]]:
    """A request with a prompt of its own and what the target answers."""
    sampling = SamplingParams(max_tokens=40, temperature=temperature, ignore_eos=True)
    request = Request("a", (5, 4, 3, seed % 7), sampling, Targets(), seed=seed, arrived=0.0)
    return request, tuple(run(engine_for(MODELS, Setting("continuous", draft="none")), [request]).tokens["a"])


@pytest.mark.parametrize("seed", [3, 2**64 - 5])
def test_a_coupled_draft_with_the_targets_logits_foresees_every_draw(seed: int) -> None:
    request, output = drawn(1.0, seed)
    assert MODELS.draft is not None
    coupled = recorded_output(MODELS.draft, request.prompt, output, temperature=1.0, width=4, noise=NoiseOf(seed))
    assert (coupled.rank == 0).all() and len(output) == 40
    plain = recorded_output(MODELS.draft, request.prompt, output, temperature=1.0, width=4)
    other = recorded_output(MODELS.draft, request.prompt, output, temperature=1.0, width=4, noise=NoiseOf(seed, choice=1))
    assert (plain.rank > 0).any() and (other.rank > 0).any()


def test_without_noise_to_share_coupling_changes_nothing() -> None:
    request, output = drawn(0.0, 3)
    assert MODELS.draft is not None
    found = [
        recorded_output(MODELS.draft, request.prompt, output, temperature=0.0, width=4, noise=noise)
        for noise in (None, NoiseOf(3))
    ]
    np.testing.assert_array_equal(found[0].prob, found[1].prob)
    assert (found[0].rank == 0).all()
