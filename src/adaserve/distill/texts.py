"""Rows from files: a JSON object a line, {"tokens": [...]} or {"text": "..."}, optionally with "kind" and "given".

given: how many tokens at the front are a prompt; the rest counts as the target's own. Without it all of it is given.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from adaserve.distill.rows import Role, Rows
from adaserve.errors import InvalidConfig, InvalidTrace
from adaserve.models.tokenizer import Tokenizer


def read_texts(path: Path, tokenizer: Tokenizer, length: int) -> Rows:
    """Read rows of at most `length` tokens; raises InvalidTrace naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidTrace(f"cannot read {path}: {error}") from error
    sequences = [_sequence(line, f"{path}, line {number}", tokenizer) for number, line in enumerate(lines, 1) if line.strip()]
    if not sequences:
        raise InvalidTrace(f"{path} holds no text; give a JSON object a line, with text or tokens")
    return Rows.of(sequences, length)


def write_texts(path: Path, rows: Rows) -> None:
    """Write rows as `read_texts` reads them. A row of several turns keeps where its first answer begins."""
    with open(path, "w", encoding="utf-8") as file:
        for token, role, kind in zip(rows.token, rows.role, rows.kind, strict=True):
            size = int((role != Role.PADDING).sum())
            answers = (role == Role.ANSWER).nonzero()[:, 0]
            given = int(answers[0]) if len(answers) else size
            file.write(json.dumps({"kind": kind, "given": given, "tokens": token[:size].tolist()}) + "\n")


def save_rows(path: Path, rows: Rows, label: str) -> None:
    """Keep rows for a later start. label: what they depend on. Raises InvalidConfig for a file that cannot be written."""
    tensors = {"token": rows.token, "role": rows.role}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".part")
        save_file(tensors, whole, metadata={"label": label, "kind": json.dumps(rows.kind)})
        whole.replace(path)  # the file is there entirely or not at all
    except (OSError, SafetensorError) as error:
        raise InvalidConfig(f"cannot write {path}: {error}") from error


def load_rows(path: Path, label: str) -> Rows | None:
    """The rows that `save_rows` kept under the same label, or None."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
            if facts.get("label") != label:
                return None
            return Rows(file.get_tensor("token"), file.get_tensor("role"), tuple(json.loads(facts["kind"])))
    except (OSError, SafetensorError):
        return None


def _sequence(line: str, where: str, tokenizer: Tokenizer) -> tuple[str, list[int], list[int]]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise InvalidTrace(f"{where}: not JSON: {error}") from error
    if not isinstance(entry, dict) or ("text" in entry) == ("tokens" in entry):
        raise InvalidTrace(f"{where}: must be an object with either text or tokens")
    tokens = entry.get("tokens") if "tokens" in entry else tokenizer.encode(str(entry["text"]))
    sound = isinstance(tokens, list) and all(isinstance(t, int) and 0 <= t < tokenizer.vocab_size for t in tokens)
    if not sound or not tokens:
        raise InvalidTrace(f"{where}: tokens must be ids between 0 and {tokenizer.vocab_size - 1}, at least one")
    given = entry.get("given", len(tokens))
    if not isinstance(given, int) or given < 0:
        raise InvalidTrace(f"{where}: given must be a number of tokens, got {given!r}")
    return str(entry.get("kind", "text")), tokens, [Role.GIVEN if i < given else Role.ANSWER for i in range(len(tokens))]
