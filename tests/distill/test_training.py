"""Training: it teaches, it continues where it was interrupted, and what is remembered changes nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.clock import VirtualClock
from adaserve.distill.batches import Batches
from adaserve.distill.checkpoint import Checkpoint
from adaserve.distill.networks import Network, load_network, make_draft
from adaserve.distill.optimizer import rate_at
from adaserve.distill.recipe import Recipe
from adaserve.distill.rows import Role, Rows
from adaserve.distill.training import Trainer
from adaserve.distill.world import TrainingWorld
from adaserve.errors import InvalidModel
from adaserve.models.random import noisy_copy, random_weights, tiny_config

CPU = torch.device("cpu")
CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG, seed=5, scale=3.0)
RECIPE = Recipe(steps=6, batch_tokens=128, micro_tokens=64, rate=3e-3)


def some_rows(count: int = 12, length: int = 24) -> Rows:
    draw = torch.Generator().manual_seed(0)
    token = torch.randint(1, 100, (count, length), generator=draw, dtype=torch.int32)
    role = torch.full((count, length), int(Role.ANSWER), dtype=torch.uint8)
    role[:, :4] = int(Role.GIVEN)
    for row in range(count):
        role[row, length - row :] = int(Role.PADDING)
    return Rows(token.masked_fill(role == Role.PADDING, 0), role, ("any",) * count)


def networks() -> tuple[Network, Network]:
    target = load_network(CONFIG, WEIGHTS, dtype=torch.float32, device=CPU)
    return target, make_draft(target, noisy_copy(WEIGHTS, 0.7, 1), range(CONFIG.layers), dtype=torch.float32)


class Ticking(VirtualClock):
    """A clock that moves a second at every look."""

    def now(self) -> float:
        self.advance(1.0)
        return super().now()


def train(recipe: Recipe, checkpoint: Checkpoint | None = None, said: list[str] | None = None) -> tuple[Trainer, Network]:
    target, draft = networks()
    hear = (said if said is not None else []).append
    trainer = Trainer(target, draft, some_rows(), recipe, world=TrainingWorld(), clock=Ticking(), say=hear, checkpoint=checkpoint)
    trainer.run()
    return trainer, draft


def weights_of(draft: Network) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in draft.body.state_dict().items()}


def same(first: Network, second: Network) -> bool:
    other = weights_of(second)
    return all(torch.equal(tensor, other[name]) for name, tensor in weights_of(first).items())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_draft_learns(optimizer: str) -> None:
    """What could be accepted of its draws rises by a quarter of what was missing."""
    said: list[str] = []
    train(replace(RECIPE, steps=60, optimizer=optimizer), said=said)
    accepted = [float(line.rpartition(" ")[2]) for line in said]
    assert accepted[-1] > accepted[0] + (1 - accepted[0]) / 4


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_interrupted_run_ends_as_a_whole_one(tmp_path: Path, optimizer: str) -> None:
    recipe = replace(RECIPE, optimizer=optimizer)
    _, whole = train(recipe)
    checkpoint = Checkpoint(tmp_path / "run" / "c.safetensors", "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_share", lambda self, share=Trainer._share: 1.0 if self.progress.steps == 3 else share(self))
        assert train(recipe, checkpoint)[0].progress.steps == 3
    said: list[str] = []
    trainer, resumed = train(recipe, checkpoint, said)
    assert said[0] == "resumed at step 3" and trainer.progress.steps == 6
    assert same(resumed, whole)
    again, after = train(recipe, checkpoint)  # nothing is left to do
    assert again.progress == trainer.progress and same(after, whole)


def test_memory_changes_nothing() -> None:
    assert same(train(RECIPE)[1], train(replace(RECIPE, remember_bytes=10**6))[1])


def test_time_ends_a_run() -> None:
    trainer, _ = train(replace(RECIPE, steps=None, minutes=0.5))
    assert 30 <= trainer.progress.seconds < 35


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    train(RECIPE, Checkpoint(path, "one"))
    with pytest.raises(InvalidModel, match="from a run with other options; remove it"):
        train(RECIPE, Checkpoint(path, "two"))
    path.write_bytes(b"nonsense")
    with pytest.raises(InvalidModel, match="not a checkpoint; remove it"):
        train(RECIPE, Checkpoint(path, "one"))


@given(micro=st.integers(1, 200), batch=st.integers(1, 400), processes=st.integers(1, 3), steps=st.integers(0, 5))
def test_every_epoch_reads_every_row_once(micro: int, batch: int, processes: int, steps: int) -> None:
    rows = some_rows()
    batches = Batches(rows, replace(RECIPE, micro_tokens=micro, batch_tokens=batch), CPU)
    groups = batches._groups
    assert sorted(row for group in groups for row in group) == list(range(len(rows)))
    sizes = (rows.role != Role.PADDING).sum(1)
    for number, group in enumerate(groups):
        assert len(group) == 1 or len(group) * int(sizes[group].max()) <= micro
        read = batches[number]
        assert int(read.tokens) == int(sizes[group].sum()) and read.at.sum() == len(read.weight)
    order = batches.order(processes, 0)
    taken = [number for _ in range(3 * len(groups)) for number in next(order)]
    for epoch in range(len(taken) // len(groups)):
        assert sorted(taken[epoch * len(groups) : (epoch + 1) * len(groups)]) == list(range(len(groups)))
    late, early = batches.order(processes, steps), batches.order(processes, 0)
    for _ in range(steps):
        next(early)
    assert [next(late) for _ in range(4)] == [next(early) for _ in range(4)]


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_rate_rises_once_and_falls_to_zero(first: float, second: float) -> None:
    early, late = sorted((first, second))
    assert 0 <= rate_at(late, 1.0) <= 1
    assert rate_at(1.0, 1.0) == pytest.approx(0, abs=1e-12)
    if early >= 0.02:
        assert rate_at(early, 1.0) >= rate_at(late, 1.0)
    elif late < 0.02:
        assert rate_at(early, 1.0) <= rate_at(late, 1.0)
