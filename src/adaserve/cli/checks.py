"""What can be seen to be wrong before anything slow begins: missing models, broken files, unknown policies, no place to write."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from adaserve.cli.options import DEFAULTS
from adaserve.config import EngineConfig
from adaserve.errors import InvalidConfig, InvalidModel
from adaserve.models.gguf_header import read_header
from adaserve.models.registry import Format, ModelSource, resolve, resolve_draft

NO_MODEL = ("none", "ngram")
"""Values of --draft that name no model."""


def check_engine(config: EngineConfig) -> None:
    """Find the models and look at their files' headers, and find the policy; raises what is wrong with them in one line.

    Loads no tensors, and torch only for a policy other than the default and for several ranks.
    """
    source = resolve(config.model)
    check_files(source)
    if config.tensor_parallel_size > 1:
        from adaserve.models.load import read_config
        from adaserve.parallel.share import Share

        Share(read_config(source), 0, config.tensor_parallel_size)  # refuses what does not divide
    if config.draft_model is not None and config.draft_model not in NO_MODEL:
        check_files(resolve_draft(config.draft_model))
    if config.policy != DEFAULTS.policy:
        from adaserve.policy.adaptive import Constants
        from adaserve.policy.library import make_policy

        make_policy(config.policy, Constants(verify_rows=1, draft_rows=0))


def check_writable(path: Path) -> None:
    """Make the folder of a file that is to be written much later; raises InvalidConfig now if the file cannot be."""
    there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise InvalidConfig(f"cannot write {path}: {error.strerror or error}") from error
    if not there:
        path.unlink()


def check_files(source: ModelSource) -> None:
    """Look at the headers of a model's files; raises InvalidModel naming the file."""
    if source.format is Format.GGUF:
        read_header(source.path)
        return
    if source.format is Format.FOLDER:
        _check_json(source.path / "config.json")
    for path in sorted(source.path.glob("*.safetensors")) if source.path.is_dir() else [source.path]:
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise InvalidModel(f"{path}: broken or truncated: {' '.join(str(error).split())[:200]}") from None


def _check_json(path: Path) -> None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidModel(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, dict):
        raise InvalidModel(f"{path}: must hold a JSON object")
