"""The training loop: rows in, a better draft out."""

from collections.abc import Callable

import torch
from torch import Tensor

from adaserve.clock import Clock
from adaserve.distill.batches import Batches
from adaserve.distill.checkpoint import Checkpoint, TrainingProgress
from adaserve.distill.gradient import pull
from adaserve.distill.networks import Network
from adaserve.distill.optimizer import Optimizer, rate_at
from adaserve.distill.recipe import Recipe
from adaserve.distill.rows import Rows
from adaserve.distill.world import TrainingWorld

REPORT_EVERY = 15.0
"""Seconds between lines of progress."""


class Trainer:
    """Trains a draft on rows; every device has its own share of each step's rows.

    clock tells how long it took, say hears lines of progress. checkpoint: where progress is kept, None for nowhere.
    """

    def __init__(
        self,
        target: Network,
        draft: Network,
        rows: Rows,
        recipe: Recipe,
        *,
        world: TrainingWorld,
        clock: Clock,
        say: Callable[[str], None],
        checkpoint: Checkpoint | None = None,
        checkpoint_every: float = 60.0,
    ) -> None:
        self._target, self._draft, self._recipe, self._world = target, draft, recipe, world
        self._clock, self._say, self._checkpoint, self._checkpoint_every = clock, say, checkpoint, checkpoint_every
        self._parameters = dict(draft.body.named_parameters())
        self._optimizer = Optimizer(self._parameters, recipe)
        self._batches = Batches(rows, recipe, target.device)
        self._memory = _Memory(recipe.remember_bytes)
        self._head = target.head[: recipe.vocabulary]
        self.progress = TrainingProgress()

    def run(self) -> TrainingProgress:
        """Train to the end of the recipe; returns how far it went."""
        self._resume()
        began, before = self._world.agree(self._clock.now()), self.progress.seconds
        reported = saved = began
        distance = weights = 0.0
        order = self._batches.order(self._world.size, self.progress.steps)
        while self._share() < 1:
            share, step = self._share(), self.progress.steps
            moved, weight, tokens = self._step(next(order))
            self._optimizer.step(rate_at(share, self._recipe.rate))
            distance, weights = distance + moved, weights + weight
            now = self._world.agree(self._clock.now())
            self.progress = TrainingProgress(step + 1, self.progress.tokens + tokens, before + now - began)
            if now - reported >= REPORT_EVERY or self._share() >= 1:
                spent = max(1e-9, now - began)
                self._say(
                    f"step {step + 1}: {self._share():.0%}, {self.progress.tokens / 1e6:.1f} M tokens "
                    f"({self.progress.tokens / (before + spent):,.0f}/s), accepted at temperature 1: {1 - distance / weights:.3f}"
                )
                reported, distance, weights = now, 0.0, 0.0
            if now - saved >= self._checkpoint_every:
                self._save()
                saved = now
        self._save()
        return self.progress

    def _share(self) -> float:
        """How much of the way is behind us."""
        recipe = self._recipe
        by_steps = 0.0 if recipe.steps is None else self.progress.steps / recipe.steps
        by_time = 0.0 if recipe.minutes is None else self.progress.seconds / (60 * recipe.minutes)
        return max(by_steps, by_time)

    def _step(self, batches: list[int]) -> tuple[float, float, int]:
        """Gradients of one optimizer step; returns summed distance and weight, and tokens, over all devices."""
        total = torch.zeros(3, dtype=torch.float64, device=self._target.device)  # distance, weight, tokens
        for number in batches:
            batch = self._batches[number]
            taught = self._memory.get(number)
            if taught is None:
                with torch.inference_mode():
                    taught = self._target.hidden(batch.token)[batch.at]  # [m, hidden]
                self._memory.put(number, taught)
            with self._precision():
                hidden = self._draft.hidden(batch.token)[batch.at]  # [m, hidden]
            pulled = pull(hidden.float(), taught, self._head, batch.weight, greedy=self._recipe.greedy)
            hidden.backward(pulled.gradient.to(hidden.dtype))
            total += torch.stack([pulled.distance, batch.weight.sum().double(), batch.tokens.double()])
        distance, weight, tokens = self._world.sum(total).tolist()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters.values()]
        for parameter, gradient in zip(self._parameters.values(), self._world.sum_all(gradients), strict=True):
            parameter.grad = gradient / max(weight, 1e-9)
        return distance, weight, int(tokens)

    def _precision(self) -> torch.autocast:
        """bfloat16 products on a GPU; master weights, sums and norms stay float32."""
        device = self._target.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda")

    def _save(self) -> None:
        if self._checkpoint is None or not self._world.is_first:
            return
        weights = {name: p.detach().cpu().contiguous() for name, p in self._parameters.items()}
        self._checkpoint.save(self.progress, weights, self._optimizer.state())

    def _resume(self) -> None:
        found = None if self._checkpoint is None else self._checkpoint.load()
        if found is None:
            return
        self.progress, weights, state = found
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])
        self._optimizer.restore(state)
        self._say(f"resumed at step {self.progress.steps}")


class _Memory:
    """The target's states by batch, until the memory is full."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._known: dict[int, Tensor] = {}

    def get(self, number: int) -> Tensor | None:
        return self._known.get(number)

    def put(self, number: int, states: Tensor) -> None:
        if states.nbytes <= self._left:
            self._left -= states.nbytes
            self._known[number] = states
