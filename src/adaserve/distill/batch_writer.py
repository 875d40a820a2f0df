"""The writer for GPUs: thousands of rows in lockstep. A row that is at a given token takes it, every other one what was drawn."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adaserve.distill.lockstep import Lockstep
from adaserve.distill.networks import Network
from adaserve.distill.rows import Rows, Script
from adaserve.distill.stage import Stage

_LOOK_EVERY = 32
"""Steps between looks at whether all rows are over: each look waits for the device."""


class BatchWriter:
    """Plays scripts through the training module, as many at a time as fill `tokens` together."""

    def __init__(self, target: Network, tokens: int, seed: int, progress: Callable[[str], None]) -> None:
        self._target = target
        self._tokens = tokens
        self._generator = torch.Generator(target.device).manual_seed(seed)
        self._progress = progress

    def write(self, scripts: Sequence[Script], length: int) -> Rows:
        """See Writer."""
        parts = []
        batches = math.ceil(len(scripts) / max(1, self._tokens // length))
        rows = math.ceil(len(scripts) / max(1, batches))  # batches of one size: a small last one would take as long
        for start in range(0, len(scripts), rows):
            parts.append(self._play(scripts[start : start + rows], length))
            self._progress(f"wrote {min(start + rows, len(scripts))} of {len(scripts)} rows of {length} tokens")
        return Rows.join(parts)

    @torch.inference_mode()
    def _play(self, scripts: Sequence[Script], length: int) -> Rows:
        device = self._target.device
        state = Stage(scripts, device)
        step = Lockstep(self._target, len(scripts), length)
        token = torch.zeros(len(scripts), length, dtype=torch.int32, device=device)  # [n, T]
        role = torch.zeros(len(scripts), length, dtype=torch.uint8, device=device)  # [n, T]
        drawn = torch.zeros(len(scripts), dtype=torch.long, device=device)  # [n]; every script begins with given tokens
        for at in range(length):
            if at:
                scores = step(token[:, at - 1].long())  # [n, V]
                drawn = draw(state.forbid(scores), state.temperature(), self._generator)
            token[:, at], role[:, at] = state.take(drawn)
            if at % _LOOK_EVERY == 0 and state.is_over():
                break
        return Rows(token.cpu(), role.cpu(), tuple(script.kind for script in scripts))


def draw(logits: Tensor, temperature: Tensor, generator: torch.Generator) -> Tensor:
    """One token of every row [n, V] -> [n], by the Gumbel trick: at temperature 0 the noise vanishes."""
    scores = logits.float()
    if bool((temperature > 0).any()):
        noise = torch.empty_like(scores).exponential_(generator=generator).log_()  # minus a Gumbel variable
        scores = scores.addcmul(noise, temperature[:, None], value=-1)
    return scores.argmax(-1)
