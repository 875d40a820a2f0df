"""What an interrupted training goes on from: progress, weights and optimizer state in one file of plain tensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adaserve.errors import InvalidConfig, InvalidModel


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
