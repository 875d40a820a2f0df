"""How much logits of the same known tokens differ between passes of one row and of more; a part of gpu_law.py."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from gpu_reading import Reader, in_passes
from torch import Tensor

from adaserve.models.decoder import Decoder
from adaserve.step import Chunk

MEASURED = 8
"""Texts whose logits are compared; the others only fill the passes."""
SAMPLED = 8192
"""About so many tokens of the vocabulary are looked at in each row."""
ROWS = 4096
"""Of a pass over what stands before."""


@dataclass(frozen=True)
class Spread:
    """Of absolute differences: median, 99th percentile and the largest."""

    p50: float
    p99: float
    most: float

    @staticmethod
    def of(differences: Tensor) -> "Spread":
        """The spread of some numbers."""
        ordered = differences.flatten().sort().values
        at = [int(share * (len(ordered) - 1)) for share in (0.5, 0.99, 1.0)]
        return Spread(*ordered[at].tolist())

    def __str__(self) -> str:
        return f"p50 {self.p50:.3g}  p99 {self.p99:.3g}  max {self.most:.3g}"


@dataclass(frozen=True)
class Differences:
    """Per way of reading, the spread of logits' differences and of those of the two best's margin. p99: of all ways together."""

    rows: int
    ways: dict[str, tuple[Spread, Spread]]
    p99: float

    def to_json(self) -> dict[str, Any]:
        """The numbers."""
        ways = {name: {"logits": asdict(every), "margin": asdict(margin)} for name, (every, margin) in self.ways.items()}
        return {"rows": self.rows, "p99": self.p99, "against one row": ways}


@torch.inference_mode()
def measure(target: Decoder, texts: Sequence[Sequence[int]], last: int) -> Differences:
    """Read the last tokens of the first few texts one row at a time, and in passes of more rows.

    What stands before them is read in the same passes each time; all that follows has keys and values of its own reading.
    """
    measured, start = min(MEASURED, len(texts)), len(texts[0]) - last
    reader = Reader(target, texts)
    for chunks in in_passes([Chunk(slot, 0, start) for slot in range(len(texts))], ROWS):
        reader(chunks)
    everybody = len(texts)
    single = _read(target, reader, measured, 1, start, last, 1)  # [measured, last, V]
    best = single.topk(2, dim=2).indices  # [measured, last, 2]
    sampled = slice(None, None, max(1, single.shape[2] // SAMPLED))
    ways, together = {}, []
    for name, at_once, length in (
        (f"{measured} rows", measured, 1),
        (f"{everybody} rows", everybody, 1),
        (f"{3 * everybody} rows", everybody, 3),
        ("chunks", measured, last),
    ):
        logits = _read(target, reader, measured, at_once, start, last, length)  # [measured, last, V]
        together.append((logits - single)[:, :, sampled].abs())
        margins = [x.gather(2, best).diff(dim=2) for x in (single, logits)]  # [measured, last, 1] each
        ways[name] = Spread.of(together[-1]), Spread.of((margins[0] - margins[1]).abs())
    return Differences(measured * last, ways, Spread.of(torch.stack(together)).p99)


def _read(target: Decoder, reader: Reader, measured: int, at_once: int, start: int, last: int, length: int) -> Tensor:
    """Logits of the first `measured` texts from `start` on, in passes of `length` rows each of `at_once` texts.

    Fewer at once than are measured go one group after the other. Returns [measured, last, V].
    """
    out = torch.empty(measured, last, target.config.vocab_size, dtype=torch.float32, device=target.device)
    groups = [range(first, first + at_once) for first in range(0, measured, at_once)]
    for group in groups:
        own = min(len(group), measured)
        for offset in range(0, last, length):
            rows = min(length, last - offset)
            hidden = reader([Chunk(slot, start + offset, rows) for slot in group])  # [at_once * rows, hidden]
            logits = target.logits(hidden)  # of all rows, for the head's product has a size too
            out[group.start : group.start + own, offset : offset + rows] = logits.view(len(group), rows, -1)[:own]
    return out
