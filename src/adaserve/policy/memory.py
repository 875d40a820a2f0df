"""What a policy learned, kept between starts: one JSON file a model pair, written whole or not at all.

A file that is missing, damaged or of another version costs nothing but the learning: the policy starts as if there were none.
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol


class Memory(Protocol):
    """Knowledge that can be put into JSON and taken up again."""

    def remembered(self) -> dict[str, object]:
        """All that is worth keeping, as JSON has it."""
        ...

    def recall(self, found: object) -> None:
        """Take up what `remembered` gave; raises ValueError, and changes nothing, if it is anything else."""
        ...


def save_memory(memory: Memory, path: Path) -> None:
    """Write a file that a reader sees either whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as fresh:
        try:
            json.dump(memory.remembered(), fresh)
            fresh.close()
            os.replace(fresh.name, path)
        except BaseException:
            os.unlink(fresh.name)
            raise


def load_memory(memory: Memory, path: Path, warn: Callable[[str], None]) -> bool:
    """Take up what a file holds, if there is one; whether that was done. A damaged one is told in one line and left alone."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        memory.recall(found)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError) as error:
        warn(f"what was learned before is of no use ({path}): {' '.join(str(error).split())[:200]}")
        return False
    return True
