"""Distillation from beginning to end: load, write, train, evaluate, save."""

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adaserve.clock import Clock
from adaserve.distill.batch_writer import BatchWriter
from adaserve.distill.checkpoint import Checkpoint
from adaserve.distill.evaluation import Quality, evaluation_rows, qualities, record
from adaserve.distill.networks import Network, load_network, make_draft, spread_layers
from adaserve.distill.openings import SOURCE, SUMMARY, Openings, library_functions, library_source, prompt_scripts, raw_rows
from adaserve.distill.output import write_draft
from adaserve.distill.recipe import Recipe
from adaserve.distill.rows import Rows, Script
from adaserve.distill.texts import load_rows, read_texts, save_rows, write_texts
from adaserve.distill.training import Trainer
from adaserve.distill.world import TrainingWorld
from adaserve.distill.writers import EngineWriter, Writer
from adaserve.errors import InvalidConfig
from adaserve.models.config import ModelConfig
from adaserve.models.int8 import Int8Weights
from adaserve.models.load import open_model
from adaserve.models.registry import Format, ModelSource, resolve, resolve_draft
from adaserve.models.safetensors import SafetensorsFiles
from adaserve.models.tokenizer import Tokenizer, load_tokenizer
from adaserve.models.weights import draft_config

WRITERS = ("engine", "batch")
_ANY_PROFILE = Path(__file__).parent.parent / "data" / "profiles" / "h200-32b.json"
"""Plain decoding depends on no step times, so the engine that writes measures none."""
_RAW_SHARE = 1 / 16
"""Tokens of raw source for every token of a distillation that uses the built-in mix."""


@dataclass(frozen=True)
class Texts:
    """What a draft is trained on.

    write     tokens that the target writes itself, from built-in openings
    prompts   files of prompts that it answers
    files     files of text or tokens that exist
    length    tokens of a row; long: of a row with a document to be summarised
    writer    engine or batch (writers.py); at_once: tokens of the rows that the batch writer plays at once
    library   a folder of Python files to take functions and raw source from; None: this machine's library
    answer    most tokens of an answer to a prompt from a file

    Raises InvalidConfig for numbers that make no sense.
    """

    write: int = 0
    prompts: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()
    length: int = 448
    long: int = 1152
    writer: str = "engine"
    at_once: int = 1 << 17
    library: Path | None = None
    answer: int = 256

    def __post_init__(self) -> None:
        if not (self.write or self.prompts or self.files):
            raise InvalidConfig("there is nothing to train on; give --write, --prompts or --texts")
        for name, value, least in (
            ("--write", self.write, 0),
            ("--length", self.length, 16),
            ("--long", self.long, 16),
            ("--writer-tokens", self.at_once, 1),
        ):
            if value < least:
                raise InvalidConfig(f"{name} must be at least {least}, got {value}")
        if self.writer not in WRITERS:
            raise InvalidConfig(f"--writer must be one of {', '.join(WRITERS)}, got {self.writer!r}")
        if self.library is not None and not self.library.is_dir():
            raise InvalidConfig(f"--library: no folder {self.library}")


@dataclass(frozen=True)
class Job:
    """One distillation. out: the folder to write. init: a draft to begin with, None for the target's own layers.

    evaluate: tokens per held-out answer, None for the classes' own.
    """

    model: str
    out: Path
    layers: int
    texts: Texts
    recipe: Recipe
    init: str | None = None
    device: str = "auto"
    save_texts: Path | None = None
    evaluate: int | None = None

    def describe(self, rank: int, size: int) -> str:
        """Everything that the texts of one process and the weights depend on: what an interrupted run must agree in."""
        return f"{self.model} {self.layers} {self.init} {self.texts} {self.recipe} process {rank} of {size}"


def distill(job: Job, *, clock: Clock, say: Callable[[str], None]) -> dict[str, Quality]:
    """Run a job; returns the draft's quality by class, nothing in processes beside the first.

    Raises InvalidConfig, InvalidModel, ModelNotFound or InvalidTrace.
    """
    device = _device(job.device)
    world = TrainingWorld.join(device)
    speak = say if world.is_first else lambda line: None
    began = clock.now()
    source = resolve(job.model)
    tokenizer = load_tokenizer(source)
    config, weights = open_model(source)
    eos_ids = tuple(sorted({*config.eos_ids, *tokenizer.eos_ids}))
    speak(f"loading {source.path}")
    target = load_network(config, weights, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32, device=device)
    draft = _first_draft(job, target, weights)
    writer = _writer(job, target, world, speak)
    label = job.describe(world.rank, world.size)
    kept = job.out / f"texts-{world.rank}.safetensors"
    rows = load_rows(kept, label)
    if rows is None:
        rows = _rows(job, tokenizer, config, eos_ids, writer, world)
        save_rows(kept, rows, label)
    written = clock.now() - began
    speak(f"{len(rows)} rows, {rows.tokens / 1e6:.2f} M tokens a process, after {written:.0f} s")
    if job.save_texts is not None and world.is_first:
        write_texts(job.save_texts, rows)
    length = min(1024, config.max_positions)
    held_out = evaluation_rows(tokenizer, eos_ids, writer, length, job.evaluate) if world.is_first else None
    before = _quality(draft, held_out, job)
    checkpoint = Checkpoint(job.out / "checkpoint.safetensors", job.describe(0, world.size))  # one for all processes
    trainer = Trainer(target, draft, rows, job.recipe, world=world, clock=clock, say=speak, checkpoint=checkpoint)
    progress = trainer.run()
    after = _quality(draft, held_out, job)
    if world.is_first:
        facts: dict[str, object] = {
            "target": job.model,
            "layers": len(draft.body.layers),
            "begun as": job.init or "the target's own layers",
            "trained on": f"{rows.tokens * world.size:,} tokens, written by {job.texts.writer}",
            "steps": progress.steps,
            "tokens read": f"{progress.tokens:,}",
            "devices": f"{world.size} x {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}",
            "seconds": f"{written:.0f} to load and write, {progress.seconds:.0f} to train",
            "recipe": job.recipe,
        }
        write_draft(job.out, draft, tokenizer, {k: str(v) for k, v in facts.items()}, before, after, speak)
    world.leave()
    return after


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("--device cuda: torch sees no GPU here; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _first_draft(job: Job, target: Network, weights: Mapping[str, Tensor]) -> Network:
    """The draft before training: another draft's layers, or some of the target's."""
    if job.init is None:
        layers = spread_layers(target.config.layers, job.layers)
        return make_draft(target, weights, layers, dtype=torch.float32)
    source: ModelSource = resolve_draft(job.init)
    if source.format is Format.LAYERS:
        stored: Mapping[str, Tensor] = Int8Weights(SafetensorsFiles([source.path]), str(source.path))
        count = draft_config(target.config, stored, str(source.path)).layers
    else:
        config, stored = open_model(source)
        count = config.layers
    return make_draft(target, stored, range(count), dtype=torch.float32)


def _writer(job: Job, target: Network, world: TrainingWorld, say: Callable[[str], None]) -> Writer:
    if job.texts.writer == "batch":
        return BatchWriter(target, job.texts.at_once, job.recipe.seed + world.rank, say)
    from adaserve.llm import LLM

    llm = LLM(job.model, progress=say, device=job.device, draft="none", policy="continuous", profile=str(_ANY_PROFILE))
    return EngineWriter(llm, job.recipe.seed + world.rank)


def _rows(
    job: Job, tokenizer: Tokenizer, config: ModelConfig, eos_ids: tuple[int, ...], writer: Writer, world: TrainingWorld
) -> Rows:
    """This process's share of everything to be read."""
    texts, rng = job.texts, random.Random(f"{job.recipe.seed} {world.rank}")
    # An engine writes no further than a model's context.
    short, long = min(texts.length, config.max_positions), min(texts.long, config.max_positions)
    scripts: dict[int, list[Script]] = {short: [], long: []}
    for path in texts.prompts:
        scripts[long] += prompt_scripts(path, tokenizer, eos_ids, texts.answer, rng)[world.rank :: world.size]
    parts = []
    for path in texts.files:
        rows = read_texts(path, tokenizer, long)
        parts.append(rows.take(range(world.rank, len(rows), world.size)))
    if texts.write:
        openings = Openings(tokenizer, eos_ids, rng, library_functions(texts.library))
        for kind, share in job.recipe.shares.items():
            length = long if kind == SUMMARY else short
            count = max(1, round(share * texts.write / (length * world.size)))
            scripts[length] += openings.scripts(kind, count, length)
        source = library_source(texts.library)
        rng.shuffle(source)
        parts.append(raw_rows(tokenizer, SOURCE, source[: round(_RAW_SHARE * texts.write / (short * world.size))], short))
    parts += [writer.write(group, length) for length, group in scripts.items() if group]
    return Rows.join([part for part in parts if len(part)])


def _quality(draft: Network, rows: Rows | None, job: Job) -> dict[str, Quality]:
    if rows is None or not len(rows):
        return {}
    return qualities(record(draft, rows, f"{job.model} + draft", job.recipe.vocabulary))
