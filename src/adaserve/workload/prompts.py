"""The project's own prompts, one JSON list per class beside this file."""

import json
from functools import cache
from importlib.resources import files


@cache
def prompts(class_name: str) -> tuple[str, ...]:
    """Prompts of a class: `coding`, `chat` or `summarization`. Raises ValueError for other names."""
    folder = files("adaserve.workload") / "prompts"
    try:
        text = (folder / f"{class_name}.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        known = sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))
        raise ValueError(f"no prompts for class {class_name!r}; there are prompts for {', '.join(known)}") from None
    return tuple(json.loads(text))
