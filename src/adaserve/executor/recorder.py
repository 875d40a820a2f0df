"""Recording: a draft model reads outputs that a target has produced, and says what it would have proposed at every position."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from adaserve.executor.acceptance import RecordedOutput
from adaserve.kernels.perturb import perturb
from adaserve.kernels.top import top_tokens
from adaserve.models.decoder import Decoder
from adaserve.request import SamplingParams
from adaserve.runtime.noise import noise_key
from adaserve.runtime.slots import SlotTable
from adaserve.runtime.table import signed_word
from adaserve.step import Chunk, PageGrant, Placement

PAGE_SIZE = 16


@dataclass(frozen=True)
class NoiseOf:
    """Whose noise a coupled draft ranks by: a request's seed, and its index among the choices of its prompt."""

    seed: int
    choice: int = 0


@torch.inference_mode()
def recorded_output(
    draft: Decoder,
    prompt: Sequence[int],
    output: Sequence[int],
    *,
    temperature: float,
    width: int,
    vocabulary: int | None = None,
    noise: NoiseOf | None = None,
) -> RecordedOutput:
    """Let the draft read prompt and output in one pass, the true tokens at every position (teacher forcing).

    temperature: the target's; the draft's probabilities are taken under it, at 0 under 1. width: candidates kept per position.
    vocabulary: only the first so many tokens are ever proposed, None for all. noise: of the request that the target answered, for
    a draft that ranks by it (speculation/ranking.py); None for one that does not. At temperature 0 both are the same.
    """
    tokens = (*prompt, *output)
    pages = -(-len(tokens) // PAGE_SIZE)
    pool = draft.new_pool(pages=pages, page_size=PAGE_SIZE, slots=1)
    table = SlotTable(slots=1, length=len(tokens), page_size=PAGE_SIZE, device=draft.device)
    table.place(Placement(0, tokens, len(prompt), SamplingParams(temperature=temperature), 0, 0, ()))
    table.grant([PageGrant(0, 0, tuple(range(pages)))])
    hidden = draft.forward(table.known_batch([Chunk(0, 0, len(tokens) - 1)], pool.tail_start), pool)  # [L - 1, hidden]
    logits = draft.logits(hidden[len(prompt) - 1 :], vocabulary)  # [output, V]
    inverse = 1 / temperature if temperature > 0 else 1.0
    if noise is not None and temperature > 0:
        position = torch.arange(len(prompt), len(tokens), device=draft.device)  # [output], as targets draw there
        seed, choice = (torch.full_like(position, word) for word in (signed_word(noise.seed), noise.choice))
        logits = perturb(logits, torch.full((len(output),), temperature, device=draft.device), noise_key(seed, choice, position))
        inverse = 1.0
    scale = torch.full((len(output),), inverse, dtype=torch.float64, device=draft.device)  # [output]
    best, log_prob = top_tokens(logits, scale, min(width, logits.shape[1]))  # [output, W]
    truth = torch.tensor(output, device=draft.device)[:, None]  # [output, 1]
    hit = best == truth  # [output, W]
    rank = torch.where(hit.any(1), hit.int().argmax(1), best.shape[1])
    return RecordedOutput(log_prob.exp().cpu().numpy(), rank.cpu().numpy().astype(np.int64), tuple(prompt))
