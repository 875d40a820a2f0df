"""Coupled ranking: the noise of the draws that follow, and a probability that holds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.kernels.gumbel import perturbed_argmax
from adaserve.request import SamplingParams
from adaserve.runtime.slots import SlotTable
from adaserve.speculation.ranking import Ranking
from adaserve.step import Placement

V = 60


def placed(temperatures: list[float], known: list[int]) -> tuple[Ranking, SlotTable]:
    """A request on every slot; seeds beyond 63 bits among them."""
    ranking = Ranking(len(known), torch.device("cpu"))
    table = SlotTable(slots=len(known), length=200, page_size=4)
    for slot, (temperature, count) in enumerate(zip(temperatures, known, strict=True)):
        sampling = SamplingParams(temperature=temperature)
        placement = Placement(slot, (1,) * count, count, sampling, 2**64 - 1 - slot, choice=slot, stop_ids=())
        ranking.place(placement)
        table.place(placement)
    return ranking, table


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
def test_a_draft_with_the_targets_logits_foresees_its_draws(seed: int, depth: int, rows: int, width: int) -> None:
    """Its first choice at depth k is what the target draws at the root's position plus k, whatever the temperature."""
    ranking, table = placed([0.0, 0.7, 1.0], [3, 10, 25])
    slot = torch.tensor([2, 0, 1])
    logits = torch.randn(3 * rows, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    token, log_prob = ranking.of(slot, table, depth, coupled=True).likeliest(logits, depth, width)
    assert token.shape == log_prob.shape == (3, rows, width)
    owner = slot.repeat_interleave(rows)
    heat = torch.tensor([0.0, 0.7, 1.0]).double()[owner]
    known = torch.tensor([3, 10, 25])[owner]
    drawn = perturbed_argmax(logits, heat, -1 - owner, owner, known - 1 + depth)
    assert torch.equal(token[:, :, 0].flatten(), drawn)
    assert (log_prob <= 0).all() and (log_prob.exp().sum(2) <= 1 + 1e-9).all()


@given(st.integers(0, 10**6), st.booleans())
def test_plain_ranking_is_the_drafts_own(seed: int, coupled: bool) -> None:
    """Without coupling, and with it at temperature 0: the likeliest tokens under softmax(logit / T)."""
    heat = 0.0 if coupled else 0.5
    ranking, table = placed([heat, heat], [4, 4])
    logits = torch.randn(2, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    token, log_prob = ranking.of(torch.tensor([0, 1]), table, 1, coupled).likeliest(logits, 1, 5)
    expected = torch.log_softmax(logits / (heat or 1.0), 1).topk(5)
    assert torch.equal(token[:, 0], expected.indices)
    torch.testing.assert_close(log_prob[:, 0], expected.values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("heat", [0.5, 1.0])
def test_what_it_says_comes_true_for_gumbel_errors(heat: float) -> None:
    """The target's logits are the draft's plus standard Gumbel errors: tokens ranked first win as often as f says."""
    rng = np.random.default_rng(0)
    count = 2500
    ranking, table = placed([heat], [50])
    table.known[0] = 9
    said, right = [], []
    draft = torch.from_numpy(rng.normal(size=(count, V)) * 2)
    target = draft + torch.from_numpy(rng.gumbel(size=(count, V)))
    slot = torch.zeros(1, dtype=torch.int64)
    for k in range(count):
        token, log_prob = ranking.of(slot, table, k + 1, coupled=True).likeliest(draft[k : k + 1], k + 1, 1)
        drawn = perturbed_argmax(target[k : k + 1], torch.tensor([heat]), slot - 1, slot, slot + 9 + k)
        said.append(log_prob.exp().item())
        right.append(token.item() == drawn.item())
    bins = np.digitize(said, [0.2, 0.4, 0.6, 0.8])
    for b in range(5):
        here = bins == b
        if here.sum() > 150:
            assert abs(np.mean(np.array(said)[here]) - np.mean(np.array(right)[here])) < 0.09
    assert abs(np.mean(said) - np.mean(right)) < 0.03


def test_only_random_requests_ask_for_noise() -> None:
    ranking, _ = placed([0.0, 1.0, 0.0], [3, 3, 3])
    assert ranking.draws((0, 1)) and not ranking.draws((0, 2)) and not ranking.draws(())
    ranking.place(Placement(1, (1,), 1, SamplingParams(temperature=0.0), 0, choice=0, stop_ids=()))
    assert not ranking.draws((0, 1, 2))
