"""How good a draft is, on answers that it was not trained on: agreement, coverage, reliability, tokens per step."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaserve.distill.networks import Network, logits
from adaserve.distill.rows import Role, Rows, Script, Turn
from adaserve.distill.writers import Writer
from adaserve.executor.acceptance import RecordedOutput, Recording, join
from adaserve.executor.recorded_beam import grow
from adaserve.models.tokenizer import Tokenizer
from adaserve.workload.classes import CHAT, CODING, SUMMARIZATION, RequestClass
from adaserve.workload.prompts import prompts

CLASSES = (CODING, CHAT, SUMMARIZATION)
BEST = 8
"""Candidates per position that are kept."""
DEPTHS, WIDTHS = (1, 2, 3, 4), (1, 2, 3)
_BINS = 10
_CHUNK = 2048


@dataclass(frozen=True)
class Bin:
    """First choices whose probability, by the draft, lay in one tenth: how many, what it said on average, what came true."""

    count: int
    predicted: float
    accepted: float


@dataclass(frozen=True)
class Quality:
    """A draft on one class of prompts, against the target's greedy answers.

    tokens         positions that were looked at
    coverage       share of positions at which the target's token was among the draft's best 1, 2, ... 8; the first is agreement
    reliability    of first choices, by tenths of their probability
    step_tokens    [depth][width]: expected tokens per step of a tree that is verified whole, the target's own one included
    """

    tokens: int
    coverage: tuple[float, ...]
    reliability: tuple[Bin, ...]
    step_tokens: Mapping[int, Mapping[int, float]]

    @property
    def agreement(self) -> float:
        """How often the draft's first choice was the target's token."""
        return self.coverage[0]

    def to_json(self) -> dict[str, object]:
        """As plain lists and objects."""
        return asdict(self)


def evaluation_rows(tokenizer: Tokenizer, eos_ids: Sequence[int], writer: Writer, length: int, most: int | None = None) -> Rows:
    """The target's greedy answers to the project's own prompts; prompts that fill a row are left out.

    most: tokens per answer; None for what the class asks for.
    """
    scripts = [
        Script(kind.name, (Turn(ids, most or kind.max_tokens, 0.0, frozenset(eos_ids), answer=True),))
        for kind in CLASSES
        for ids in _prompts(tokenizer, kind)
        if len(ids) + 8 < length
    ]
    return writer.write(scripts, length)


def _prompts(tokenizer: Tokenizer, kind: RequestClass) -> list[tuple[int, ...]]:
    chats = kind.chat and tokenizer.has_chat_template
    return [
        tuple(tokenizer.chat([{"role": "user", "content": text}]) if chats else tokenizer.encode(text))
        for text in prompts(kind.name)
    ]


@torch.inference_mode()
def record(draft: Network, rows: Rows, pair: str, vocabulary: int | None = None) -> Recording:
    """Let the draft read answers along, the true tokens at every position. vocabulary: it proposes only the first so many."""
    outputs: dict[str, list[RecordedOutput]] = {}
    for row in range(len(rows)):
        role = rows.role[row]
        size = int((role != Role.PADDING).sum())
        token = rows.token[row, :size].long()
        hidden = draft.hidden(token[None].to(draft.device))[0]  # [T, hidden]
        at = (role[1:size] == Role.ANSWER).nonzero()[:, 0]  # positions that predict an answer's token
        if not len(at):
            continue
        prob, rank = _choices(hidden[at.to(hidden.device)], token[at + 1].to(hidden.device), draft.head[:vocabulary])
        prompt = tuple(token[: int(at[0]) + 1].tolist())
        outputs.setdefault(rows.kind[row], []).append(RecordedOutput(prob, rank, prompt))
    return join(outputs, pair=pair, temperature=0.0, source="adaserve distill: greedy answers to the project's own prompts")


def _choices(hidden: Tensor, truth: Tensor, head: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The likeliest tokens' probabilities [m, W] and the rank of the true one [m], W when it is none of them."""
    probs, ranks = [], []
    for start in range(0, len(hidden), _CHUNK):
        scores = logits(hidden[start : start + _CHUNK], head).float()  # [c, V]
        prob, best = scores.softmax(-1).topk(min(BEST, scores.shape[1]))  # [c, W] each
        hit = best == truth[start : start + _CHUNK, None]  # [c, W]
        probs.append(prob.double().cpu())
        ranks.append(torch.where(hit.any(1), hit.int().argmax(1), best.shape[1]).cpu())
    return torch.cat(probs).numpy(), torch.cat(ranks).numpy().astype(np.int64)


def qualities(recording: Recording, seed: int = 0) -> dict[str, Quality]:
    """The draft's quality on every class of a recording."""
    return {name: _quality(recording, name, seed) for name in recording.classes}


def _quality(recording: Recording, name: str, seed: int) -> Quality:
    positions = recording.positions(recording.classes[name])
    first, rank = recording.prob[positions, 0], recording.rank[positions]
    tenth = np.minimum((first * _BINS).astype(int), _BINS - 1)
    bins = [(first[tenth == b], rank[tenth == b]) for b in range(_BINS)]
    return Quality(
        tokens=len(rank),
        coverage=tuple(recording.coverage(name, best) for best in range(1, recording.width + 1)),
        reliability=tuple(
            Bin(len(said), float(said.mean()) if len(said) else 0.0, float((came == 0).mean()) if len(said) else 0.0)
            for said, came in bins
        ),
        step_tokens={d: {w: step_tokens(recording, name, d, w, seed) for w in WIDTHS} for d in DEPTHS},
    )


def step_tokens(recording: Recording, name: str, depth: int, width: int, seed: int = 0) -> float:
    """Tokens per step of a class's answers, each produced by steps that verify a whole candidate tree of this depth and width.

    A step starts where the last one ended. What a draft would say after a wrong token comes from other positions of the class.
    """
    sequences = recording.classes[name]
    mine = recording.positions(sequences)
    count = mine.stop - mine.start
    prob, rank = recording.prob[mine], recording.rank[mine]
    ends = np.repeat(
        recording.start[sequences.start + 1 : sequences.stop + 1], np.diff(recording.start[sequences.start : sequences.stop + 1])
    )
    room = np.minimum(ends - mine.start - np.arange(count), depth)  # an answer's last token has no successors
    ahead = np.minimum(np.arange(count)[:, None] + np.arange(depth), count - 1)  # [P, d]
    aside = np.random.default_rng(seed).integers(0, count, (count, depth, width))  # [P, d, w]
    trees = grow(prob, rank, ahead, aside, room, width)
    accepted = trees.on.reshape(count, depth, width).any(-1).cumprod(-1).sum(-1)  # [P] nodes accepted when a step starts there
    steps = 0
    for sequence in sequences:
        at, stop = int(recording.start[sequence]) - mine.start, int(recording.start[sequence + 1]) - mine.start
        while at < stop:
            at += int(accepted[at]) + 1
            steps += 1
    return count / steps
