"""Traces of lengths: when requests came and how long they were, without their texts; `fill` makes requests of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adaserve.workload.classes import Mix
from adaserve.workload.made_up import Part, estimate
from adaserve.workload.workload import Arrival, Workload

BLOCK = 512
"""Tokens that one block hash of a Mooncake trace stands for."""


@dataclass(frozen=True)
class LengthRow:
    """One request of a trace of lengths.

    at: seconds after the trace's start. input_length, output_length: tokens, at least 1.
    blocks: hashes of the prompt's blocks of BLOCK tokens, the last one shorter: equal hashes from the start on mean a shared
        prefix. None where the trace has none.
    """

    at: float
    input_length: int
    output_length: int
    blocks: tuple[int, ...] | None = None


def fill(rows: Sequence[LengthRow], mix: Mix, seed: int) -> Workload:
    """Give each row a class by the mix's shares, that class's SLO, and a made-up prompt of its length.

    Outputs run to the row's length. What a row becomes depends on the seed and its number alone, so a part of a trace is filled
    as it would be in the whole.
    """
    classes = list(mix.shares)
    picks = np.random.default_rng(seed).choice(len(classes), size=len(rows), p=list(mix.shares.values()))
    # Prompts that share blocks must not differ in class, for the class decides the text: the first block decides for all.
    decided: dict[int, int] = {}
    arrivals = []
    for number, (row, pick) in enumerate(zip(rows, picks.tolist(), strict=True)):
        kind = classes[decided.setdefault(row.blocks[0], pick) if row.blocks else pick]
        parts = _parts(row, kind.name, number)
        arrivals.append(
            Arrival(
                at=row.at,
                prompt=estimate(parts),
                class_name=kind.name,
                slo=kind.slo,
                max_tokens=row.output_length,
                ignore_eos=True,
                input_length=row.input_length,
                parts=parts,
            )
        )
    return Workload(tuple(arrivals))


def _parts(row: LengthRow, class_name: str, number: int) -> tuple[Part, ...]:
    if not row.blocks:
        return (Part(class_name, -1 - number, row.input_length),)  # a key that no hash has, and no other row
    # The hashes cover the prompt; a trace that states fewer has an uncovered rest, one that states more has hashes to spare.
    covered = row.blocks[: -(-row.input_length // BLOCK)]
    parts = [Part(class_name, key, BLOCK) for key in covered[:-1]]
    rest = row.input_length - len(parts) * BLOCK
    parts.append(Part(class_name, covered[-1], min(rest, BLOCK)))
    if rest > BLOCK:
        parts.append(Part(class_name, -1 - number, rest - BLOCK))
    return tuple(parts)
