"""Distillation from beginning to end: load, write, train, evaluate, save."""

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from adaserve.clock import Clock
from adaserve.distill.evaluation import Quality, evaluation_rows, qualities, record
from adaserve.distill.networks import Network, load_network, make_draft, spread_layers
from adaserve.distill.openings import SOURCE, Openings, library_functions, library_source, prompt_scripts, raw_rows
from adaserve.distill.output import write_draft
from adaserve.distill.recipe import Recipe
from adaserve.distill.rows import Rows, Script
from adaserve.distill.texts import read_texts, write_texts
from adaserve.distill.training import Trainer
from adaserve.distill.world import World
from adaserve.distill.writers import BatchWriter, EngineWriter, Writer
from adaserve.errors import InvalidConfig
from adaserve.models.int8 import Int8Weights
from adaserve.models.load import open_model
from adaserve.models.registry import Format, ModelSource, resolve, resolve_draft
from adaserve.models.safetensors import SafetensorsFiles
from adaserve.models.tokenizer import Tokenizer, load_tokenizer
from adaserve.models.weights import draft_config

WRITERS = ("engine", "batch")
_RAW_SHARE = 1 / 16
"""Rows of raw source among the rows of a distillation that uses the built-in mix."""


@dataclass(frozen=True)
class Texts:
    """What a draft is trained on.

    write     tokens that the target writes itself, from built-in openings
    prompts   files of prompts that it answers
    files     files of text or tokens that exist
    length    tokens of a row
    writer    engine or batch (writers.py); rows: how many the batch writer plays at once
    library   a folder of Python files to take functions and raw source from; None: this machine's library
    answer    most tokens of an answer to a prompt from a file
    """

    write: int = 0
    prompts: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()
    length: int = 512
    writer: str = "engine"
    rows: int = 256
    library: Path | None = None
    answer: int = 256


@dataclass(frozen=True)
class Job:
    """One distillation. out: the folder to write. init: a draft to begin with, None for the target's own layers.

    engine: further fields of the engine's config, for the engine writer. evaluate: tokens per answer, None for the classes' own.
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
    engine: Mapping[str, object] = field(default_factory=dict)


def distill(job: Job, *, clock: Clock, say: Callable[[str], None]) -> dict[str, Quality]:
    """Run a job; returns the draft's quality by class. Raises InvalidConfig, InvalidModel, ModelNotFound or InvalidTrace."""
    device = _device(job.device)
    world = World.join(device)
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
    rows = _rows(job, tokenizer, eos_ids, writer, world)
    written = clock.now() - began
    speak(f"{len(rows)} rows, {rows.tokens / 1e6:.2f} M tokens a process, after {written:.0f} s")
    if job.save_texts is not None and world.is_first:
        write_texts(job.save_texts, rows)
    length = min(1024, config.max_positions)
    held_out = evaluation_rows(tokenizer, eos_ids, writer, length, job.evaluate) if world.is_first else None
    before = _quality(draft, held_out, job)
    job.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        target, draft, rows, job.recipe, world=world, clock=clock, say=speak, checkpoint=job.out / "checkpoint.safetensors"
    )
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


def _writer(job: Job, target: Network, world: World, say: Callable[[str], None]) -> Writer:
    if job.texts.writer == "batch":
        return BatchWriter(target, job.texts.rows, job.recipe.seed + world.rank, say)
    from adaserve.llm import LLM

    return EngineWriter(LLM(job.model, progress=say, **job.engine), job.recipe.seed + world.rank)


def _rows(job: Job, tokenizer: Tokenizer, eos_ids: tuple[int, ...], writer: Writer, world: World) -> Rows:
    """This process's share of everything to be read."""
    texts, rng = job.texts, random.Random(f"{job.recipe.seed} {world.rank}")
    scripts: list[Script] = []
    for path in texts.prompts:
        scripts += prompt_scripts(path, tokenizer, eos_ids, texts.answer, rng)[world.rank :: world.size]
    parts: list[Rows] = []
    if texts.write:
        count = max(1, texts.write // (texts.length * world.size))
        openings = Openings(tokenizer, eos_ids, texts.length, rng, library_functions(texts.library))
        scripts += openings.scripts(count, job.recipe.shares)
        source = library_source(texts.library)
        rng.shuffle(source)
        parts += [raw_rows(tokenizer, SOURCE, source[: int(count * _RAW_SHARE)], texts.length)] if count * _RAW_SHARE >= 1 else []
    if scripts:
        parts.insert(0, writer.write(scripts, texts.length))
    for path in texts.files:
        rows = read_texts(path, tokenizer, texts.length)
        parts.append(rows.take(range(world.rank, len(rows), world.size)))
    parts = [part for part in parts if len(part)]
    if not parts:
        raise InvalidConfig("there is nothing to train on; give --write, --prompts or --texts")
    return Rows.join(parts)


def _quality(draft: Network, rows: Rows | None, job: Job) -> dict[str, Quality]:
    if rows is None or not len(rows):
        return {}
    return qualities(record(draft, rows, f"{job.model} + draft", job.recipe.vocabulary))
