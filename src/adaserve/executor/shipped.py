"""The profiles and recordings that ship with the package, by name; files of the user's own go by their paths."""

import re
from pathlib import Path

import numpy as np

from adaserve.errors import InvalidConfig
from adaserve.executor.acceptance import Recording
from adaserve.executor.synthetic import resample
from adaserve.profile import Profile

DATA = Path(__file__).parent.parent / "data"
PROFILES, RECORDINGS = DATA / "profiles", DATA / "acceptance"

SYNTHETIC = "synthetic"
SYNTHETIC_FROM = "smollm2-noise-t0"
"""What `synthetic` is drawn from: the pair that the profile h200-32b belongs to, greedy."""


def names(folder: Path) -> list[str]:
    """What ships in a folder."""
    return sorted(path.stem for path in folder.iterdir() if path.suffix in (".json", ".npz"))


def profile_named(name: str) -> Profile:
    """A built-in profile, or the one in a file. Raises InvalidConfig, naming the built-in ones."""
    if name in names(PROFILES):
        return Profile.load(PROFILES / f"{name}.json")
    if not Path(name).is_file():
        raise InvalidConfig(f"no profile {name!r}: no such file, and the built-in ones are {', '.join(names(PROFILES))}")
    return Profile.load(name)


def recording_named(name: str, seed: int) -> Recording:
    """A built-in recording, the one in a file, or a made-up one.

    `synthetic` draws positions from SYNTHETIC_FROM; `synthetic:0.7` makes every class's draft right in 70% of its first choices,
    `synthetic:coding=0.7,chat=0.5` those of the classes named. seed: of the drawing. Raises InvalidConfig.
    """
    kind, colon, quality = name.partition(":")
    if kind == SYNTHETIC:
        recorded = Recording.load(RECORDINGS / f"{SYNTHETIC_FROM}.npz")
        top1 = _qualities(quality, list(recorded.classes)) if colon else {}
        return resample(recorded, top1, np.random.default_rng(seed))
    if name in names(RECORDINGS):
        return Recording.load(RECORDINGS / f"{name}.npz")
    if not Path(name).is_file():
        built_in = ", ".join([SYNTHETIC, *names(RECORDINGS)])
        raise InvalidConfig(f"no recording {name!r}: no such file, and the built-in ones are {built_in}")
    return Recording.load(name)


def _qualities(text: str, classes: list[str]) -> dict[str, float]:
    """Read `0.7` or `coding=0.7,chat=0.5`."""
    share = r"[01]?\.?\d+"
    if re.fullmatch(share, text):
        return dict.fromkeys(classes, float(text))
    if not re.fullmatch(rf"[^=,]+={share}(,[^=,]+={share})*", text):
        raise InvalidConfig(f"synthetic acceptance reads like synthetic:0.7 or synthetic:coding=0.7,chat=0.5, got {text!r}")
    return {name: float(value) for name, value in (part.split("=") for part in text.split(","))}
