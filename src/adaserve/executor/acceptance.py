"""Recorded acceptance: what a draft model proposed at every position of real outputs, and which of it was right.

The tokens that an engine produces are a fixed function of the target (docs/method.md), whatever is drafted and verified. So the
draft's best tokens on the *true* prefix of every output position, and the rank among them of the token that came, say exactly
what any tree would have had accepted there:

    output       t0      t1      t2      t3     the target's tokens
    position     0       1       2       3
    prob [W]     .9 ..   .4 ..   .6 ..   .3 ..  the draft's best W conditional probabilities there
    rank         0       1       0       W      t0 was its first choice, t1 its second, t3 was not among the best W

A file is a compressed .npz with the arrays of `Recording` (prob as float16) and `meta`, a JSON string.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaserve.errors import InvalidConfig

SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
"""Probabilities below it are recorded as this: 0 would make a node padding."""


@dataclass(frozen=True)
class Recording:
    """P positions of S outputs (sequences), of which W candidates each were kept. Raises InvalidConfig when it makes no sense.

    prob   [P, W] float64  the draft's best conditional probabilities given the true prefix, best first
    rank   [P] int64       which of the W the target's token was; W when it was none of them
    start  [S + 1] int64   first position of every sequence, and P; a sequence's positions are in order, so that runs of easy and
                           hard ones stay together
    prompt [S] uint64      digest of the prompt that led to the sequence
    classes      sequences of every class, by name; they cover all sequences in order
    temperature  at which the target drew; the draft's probabilities are under the same, at temperature 0 under 1
    pair, source what drafted for what, and where the recording comes from
    coupled      whether the draft ranked by the noise of the target's draws too; matters at temperatures above 0 only
    """

    prob: NDArray[np.float64]
    rank: NDArray[np.int64]
    start: NDArray[np.int64]
    prompt: NDArray[np.uint64]
    classes: Mapping[str, range]
    pair: str
    temperature: float
    source: str = ""
    coupled: bool = False

    def __post_init__(self) -> None:
        def require(condition: bool, message: str) -> None:
            if not condition:
                raise InvalidConfig(f"recording {self.pair}: {message}")

        require(self.prob.ndim == 2 and self.prob.size > 0, "prob must be positions by candidates, at least one of each")
        positions, width = self.prob.shape
        inside = np.isfinite(self.prob).all() and (self.prob > 0).all() and (self.prob <= 1).all()
        require(bool(inside), "probabilities must be in (0, 1]")
        require(bool((np.diff(self.prob, axis=1) <= 0).all()), "candidates must stand in order of probability")
        require(self.rank.shape == (positions,), f"rank must have {positions} entries")
        require(bool(((self.rank >= 0) & (self.rank <= width)).all()), f"ranks must be between 0 and {width}")
        require(self.start.ndim == 1 and len(self.start) >= 2, "there is no sequence")
        require(self.start[0] == 0 and self.start[-1] == positions, f"sequences must cover the {positions} positions")
        require(bool((np.diff(self.start) > 0).all()), "every sequence needs a position")
        require(self.prompt.shape == (len(self.start) - 1,), "every sequence needs the digest of its prompt")
        ends = [0, *(sequences.stop for sequences in self.classes.values())]
        ordered = all(s == range(first, s.stop) and len(s) for first, s in zip(ends, self.classes.values(), strict=False))
        require(ordered and ends[-1] == len(self.prompt), "classes must cover the sequences in order")

    @property
    def width(self) -> int:
        """W, candidates kept per position."""
        return self.prob.shape[1]

    def sequences(self, class_name: str | None) -> range:
        """The sequences of a class; of all classes when it was not recorded."""
        return self.classes.get(class_name or "", range(len(self.prompt)))

    def class_of(self, sequence: int) -> str:
        """The class that a sequence belongs to."""
        return next(name for name, sequences in self.classes.items() if sequence in sequences)

    def positions(self, sequences: range) -> slice:
        """The positions of neighbouring sequences."""
        return slice(int(self.start[sequences.start]), int(self.start[sequences.stop]))

    def length(self, sequence: int) -> int:
        """How many tokens an output had."""
        return int(self.start[sequence + 1] - self.start[sequence])

    def path(self, sequence: int, length: int) -> NDArray[np.int64]:
        """Positions to walk along for `length` tokens: the sequence's own, then the class's next ones, round and round."""
        mine = self.positions(self.classes[self.class_of(sequence)])
        ahead = np.arange(length) + (int(self.start[sequence]) - mine.start)
        return mine.start + ahead % (mine.stop - mine.start)

    def coverage(self, class_name: str, best: int) -> float:
        """The share of a class's positions at which the target's token was among the draft's `best` first choices."""
        return float((self.rank[self.positions(self.classes[class_name])] < min(best, self.width)).mean())

    def save(self, path: Path | str) -> None:
        """Write the recording as a compressed .npz file."""
        meta = {
            "pair": self.pair,
            "temperature": self.temperature,
            "source": self.source,
            "coupled": self.coupled,
            "classes": {name: [s.start, s.stop] for name, s in self.classes.items()},
        }
        with open(path, "wb") as file:
            np.savez_compressed(
                file,
                meta=np.array(json.dumps(meta)),
                prob=self.prob.astype(np.float16),
                rank=self.rank.astype(np.uint8),
                start=self.start.astype(np.int32),
                prompt=self.prompt,
            )

    @classmethod
    def load(cls, path: Path | str) -> "Recording":
        """Read a file that `save` wrote. Raises InvalidConfig when it is missing, broken or makes no sense."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays: dict[str, NDArray[Any]] = {key: file[key] for key in ("meta", "prob", "rank", "start", "prompt")}
            meta = json.loads(str(arrays["meta"]))
            return cls(
                prob=np.maximum(arrays["prob"].astype(np.float64), SMALLEST),
                rank=arrays["rank"].astype(np.int64),
                start=arrays["start"].astype(np.int64),
                prompt=arrays["prompt"].astype(np.uint64),
                classes={str(name): range(int(first), int(end)) for name, (first, end) in meta["classes"].items()},
                pair=str(meta["pair"]),
                temperature=float(meta["temperature"]),
                source=str(meta["source"]),
                coupled=bool(meta.get("coupled", False)),
            )
        except OSError as error:
            raise InvalidConfig(f"cannot read recording {path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise InvalidConfig(f"recording {path} is not what `adaserve record` writes: {error}") from error


@dataclass(frozen=True)
class RecordedOutput:
    """One output: the arrays of its positions (see Recording), and its prompt's token ids."""

    prob: NDArray[np.floating[Any]]
    rank: NDArray[np.integer[Any]]
    prompt: tuple[int, ...]


def join(
    outputs: Mapping[str, Sequence[RecordedOutput]], *, pair: str, temperature: float, source: str, coupled: bool = False
) -> Recording:
    """Put the outputs of every class together into a recording; classes without any are left out."""
    kept = {name: group for name, group in outputs.items() if group}
    if not kept:
        raise InvalidConfig(f"recording {pair}: there is no output to record")
    everything = [output for group in kept.values() for output in group]
    classes, first = {}, 0
    for name, group in kept.items():
        classes[name] = range(first, first := first + len(group))
    return Recording(
        prob=np.maximum(np.concatenate([o.prob for o in everything]).astype(np.float64), SMALLEST),
        rank=np.concatenate([o.rank for o in everything]).astype(np.int64),
        start=np.cumsum([0, *(len(o.rank) for o in everything)]),
        prompt=np.array([digest(o.prompt) for o in everything], dtype=np.uint64),
        classes=classes,
        pair=pair,
        temperature=temperature,
        source=source,
        coupled=coupled,
    )


def digest(tokens: Iterable[int]) -> int:
    """A fixed 64-bit name for a prompt's token ids."""
    text = " ".join(map(str, tokens)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
