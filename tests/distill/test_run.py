"""A distillation from beginning to end: a tiny random target, our engine as the writer, a draft that engines load."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adaserve.cli.main import main
from adaserve.llm import LLM
from adaserve.models.random import noisy_copy
from adaserve.request import SamplingParams
from tests.server.tiny import write_model, write_profile

OPTIONS = "--layers 1 --device cpu --length 48 --long 96 --batch-tokens 1024 --micro-tokens 512 --evaluate-tokens 8"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("run") / "tiny")


@pytest.fixture(scope="module")
def draft(folder: Path) -> Path:
    out = folder.parent / "draft"
    prompts, texts = folder.parent / "prompts.jsonl", folder.parent / "texts.jsonl"
    prompts.write_text('{"prompt": "Why do the dogs jump?", "chat": true}\n{"prompt": "def add("}\n')
    texts.write_text('{"text": "The quick brown fox jumps over the lazy dog."}\n{"tokens": [7, 8, 9, 10], "given": 2}\n')
    files = ["--prompts", str(prompts), "--texts", str(texts), "--save-texts", str(folder.parent / "kept.jsonl")]
    # A random target has nothing that half of its layers could say, so the draft begins as the target's layers, shaken.
    shaken = Path(shutil.copytree(folder, folder.parent / "shaken"))
    weights = {name: tensor.float() for name, tensor in noisy_copy(load_file(folder / "model.safetensors"), 0.7, 0).items()}
    save_file(weights, shaken / "model.safetensors")
    training = ["--init", str(shaken), "--write", "6000", "--steps", "60", "--rate", "3e-3"]
    status = main(["distill", str(folder), "--out", str(out), *training, *files, *OPTIONS.split()])
    assert status == 0
    return out


def test_the_draft_is_better_than_its_beginning(draft: Path) -> None:
    report = json.loads((draft / "report.json").read_text())
    for name in ("coding", "chat"):
        before, after = report["before"][name], report["after"][name]
        assert after["coverage"][0] > before["coverage"][0] + 0.1
        assert after["step_tokens"]["4"]["3"] > before["step_tokens"]["4"]["3"]
    card = (draft / "README.md").read_text()
    assert "| coding |" in card and "- steps: 60" in card and str(draft.parent.parent) in card


@pytest.mark.parametrize("form", ["", "layers/int8.safetensors"])
def test_engines_load_it_and_the_law_holds(folder: Path, draft: Path, form: str) -> None:
    prompts = [[5, 9, 33, 70], [100, 101], [7] * 20]
    common = {"dtype": "float32", "profile": str(write_profile(folder / "profile.json"))}
    plain = LLM(str(folder), draft="none", policy="continuous", **common)
    fast = LLM(str(folder), draft=str(draft / form), depth=3, width=2, **common)
    for temperature in (0.0, 1.0):
        params = SamplingParams(max_tokens=30, temperature=temperature, seed=3, ignore_eos=True)
        expected = [g.outputs[0].token_ids for g in plain.generate(prompts, params)]
        found = fast.generate(prompts, params)
        assert [g.outputs[0].token_ids for g in found] == expected
    assert sum(g.outputs[0].result.accepted for g in found) > 0


def test_transformers_loads_it(draft: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(draft)
    assert len(model.model.layers) == 2 and model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(draft).chat_template


def test_started_again_it_has_nothing_left_to_do(folder: Path, draft: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The texts are read back, the checkpoint is at its end, and a run with other options is refused."""
    kept = folder.parent / "kept.jsonl"
    again = [
        "distill",
        str(folder),
        "--out",
        str(folder.parent / "again"),
        "--texts",
        str(kept),
        "--steps",
        "2",
        *OPTIONS.split(),
    ]
    assert main(again) == 0
    first = capsys.readouterr()
    assert main(again) == 0
    second = capsys.readouterr()
    assert "resumed at step 2" in second.err and "resumed" not in first.err
    assert json.loads(second.out) == json.loads(first.out)
    assert main([*again, "--rate", "0.01"]) == 2
    assert "from a run with other options" in capsys.readouterr().err
