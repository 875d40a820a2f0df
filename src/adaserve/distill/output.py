"""What distillation leaves behind: a model folder for any engine, the layers alone for ours, a report and a model card."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from adaserve.distill.evaluation import DEPTHS, WIDTHS, Quality
from adaserve.distill.networks import Network, draft_weights
from adaserve.models.int8 import to_int8
from adaserve.models.save import save_folder
from adaserve.models.tokenizer import Tokenizer
from adaserve.models.weights import EMBEDDING, HEAD

LAYERS_FILE = Path("layers") / "int8.safetensors"


def write_draft(
    folder: Path, draft: Network, tokenizer: Tokenizer, facts: Mapping[str, object], before: Mapping[str, Quality],
    after: Mapping[str, Quality], say: Callable[[str], None],
) -> None:  # fmt: skip
    """Write everything. facts: how the draft was made, for the card. before, after: its quality by class."""
    layers = draft_weights(draft)
    whole = {name: tensor.to(torch.bfloat16) for name, tensor in layers.items()}
    whole[EMBEDDING] = draft.embedding.to(torch.bfloat16)
    if not draft.config.tie_embeddings:
        whole[HEAD] = draft.head.to(torch.bfloat16)
    save_folder(replace(draft.config), whole, folder, say)
    tokenizer.save(folder)
    (folder / LAYERS_FILE).parent.mkdir(exist_ok=True)
    save_file(to_int8(layers), folder / LAYERS_FILE, metadata={"format": "pt"})
    report = {
        "facts": dict(facts),
        "before": {name: quality.to_json() for name, quality in before.items()},
        "after": {name: quality.to_json() for name, quality in after.items()},
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(facts, before, after), encoding="utf-8")


def card(facts: Mapping[str, object], before: Mapping[str, Quality], after: Mapping[str, Quality]) -> str:
    """The model card: what it is, how it was made, how good it is."""
    lines = [
        "# Draft model",
        "",
        f"Proposes tokens for {facts['target']} in speculative decoding; of no use on its own. It has the target's vocabulary, "
        "embedding and head, and its licence. Whatever it proposes, the target decides: it changes speed and never text.",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "Trained on text that the target wrote itself, against the target's whole distribution.",
        "",
        table(before, after),
    ]
    return "\n".join(lines) + "\n"


def table(before: Mapping[str, Quality], after: Mapping[str, Quality]) -> str:
    """Quality by class, before and after, as a table."""
    lines = [
        "| class | tokens | agreement | among the best 3 | tokens per step, depth 4 | at width 3 |",
        "|---|---|---|---|---|---|",
    ]
    for name, quality in after.items():
        pair = (before[name], quality) if name in before else (quality,)
        cells = [
            " → ".join(f"{q.agreement:.3f}" for q in pair),
            " → ".join(f"{q.coverage[2]:.3f}" for q in pair),
            *(" → ".join(f"{q.step_tokens[DEPTHS[-1]][w]:.2f}" for q in pair) for w in (WIDTHS[0], WIDTHS[-1])),
        ]
        lines.append(f"| {name} | {quality.tokens} | {' | '.join(cells)} |")
    return "\n".join(lines)
