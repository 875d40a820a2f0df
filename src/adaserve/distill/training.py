"""The training loop: rows in, a better draft out."""

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adaserve.clock import Clock
from adaserve.distill.gradient import pull
from adaserve.distill.networks import Network
from adaserve.distill.optimizer import Optimizer, rate_at
from adaserve.distill.recipe import Recipe
from adaserve.distill.rows import Role, Rows
from adaserve.distill.world import TrainingWorld
from adaserve.errors import InvalidConfig, InvalidModel

REPORT_EVERY = 15.0
"""Seconds between lines of progress."""


@dataclass(frozen=True)
class TrainingProgress:
    """How far training is: optimizer steps, tokens read by all devices, seconds spent in earlier and in this run."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds progress, weights and optimizer state, as plain tensors. label: the run that it belongs to."""

    path: Path
    label: str

    def save(self, progress: TrainingProgress, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Write the file; it is there entirely or not at all."""
        named = {f"weight {name}": t for name, t in weights.items()} | {f"state {name}": t for name, t in state.items()}
        whole = self.path.with_suffix(".part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(named, whole, metadata={"progress": json.dumps(vars(progress)), "label": self.label})
            whole.replace(self.path)
        except (OSError, SafetensorError) as error:
            raise InvalidConfig(f"cannot write {self.path}: {error}") from error

    def load(self) -> tuple[TrainingProgress, dict[str, Tensor], dict[str, Tensor]] | None:
        """What `save` wrote, None without a file. Raises InvalidModel for a broken file or one of another run."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            progress, label = TrainingProgress(**json.loads(facts["progress"])), facts["label"]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InvalidModel(f"{self.path}: not a checkpoint; remove it") from error
        if label != self.label:
            raise InvalidModel(
                f"{self.path}: from a run with other options; remove it, repeat those options, or use another --out"
            )
        parts = {"weight": {}, "state": {}}  # type: dict[str, dict[str, Tensor]]
        for name, tensor in tensors.items():
            part, _, key = name.partition(" ")
            parts[part][key] = tensor
        return progress, parts["weight"], parts["state"]


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
        self._batches = _Batches(rows, recipe, target.device)
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


@dataclass(frozen=True)
class _Batch:
    """token [n, T]; at [n, T]: positions that count; weight [m] of each; tokens: how many are no padding."""

    token: Tensor
    at: Tensor
    weight: Tensor
    tokens: Tensor


class _Batches:
    """Rows in fixed groups of about micro_tokens, in an order that is shuffled anew each epoch.

    Fixed, so that the target's states can be remembered by number. Rows of like length stand together.
    """

    def __init__(self, rows: Rows, recipe: Recipe, device: torch.device) -> None:
        size = (rows.role != Role.PADDING).sum(1).tolist()  # [rows]
        shuffled = list(range(len(rows)))
        random.Random(recipe.seed).shuffle(shuffled)
        ordered = sorted(shuffled, key=lambda row: -(size[row] // 64))
        self._groups: list[list[int]] = []
        lengths: list[int] = []
        for row in ordered:
            longest = max(lengths[-1], size[row]) if lengths else 0
            if not self._groups or (len(self._groups[-1]) + 1) * longest > recipe.micro_tokens:
                self._groups.append([])
                lengths.append(0)
            self._groups[-1].append(row)
            lengths[-1] = max(lengths[-1], size[row])
        on_device = Rows(rows.token.to(device), rows.role.to(device), rows.kind)
        self._rows, self._lengths, self._recipe, self._device = on_device, lengths, recipe, device

    def __getitem__(self, number: int) -> _Batch:
        rows = self._rows.take(self._groups[number])
        token = rows.token[:, : self._lengths[number]].long()  # [n, T]
        role = rows.role[:, : self._lengths[number]]  # [n, T]
        weight = torch.zeros(role.shape, device=self._device)  # [n, T]: of the prediction made *at* a position, the next token's
        weight[:, :-1] = (role[:, 1:] == Role.ANSWER).float() + (role[:, 1:] == Role.GIVEN).float() * self._recipe.given
        at = weight > 0
        return _Batch(token, at, weight[at], (role != Role.PADDING).sum())

    def order(self, processes: int, steps: int) -> Iterator[list[int]]:
        """Groups of every step, from the given step on; every process has rows of its own."""
        each = math.ceil(self._recipe.batch_tokens / (self._recipe.micro_tokens * processes))
        epoch = 0
        waiting: list[int] = []
        for step in itertools.count():
            while len(waiting) < each:
                fresh = list(range(len(self._groups)))
                random.Random(f"{self._recipe.seed} {epoch}").shuffle(fresh)
                waiting, epoch = waiting + fresh, epoch + 1
            taken, waiting = waiting[:each], waiting[each:]
            if step >= steps:
                yield taken


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
