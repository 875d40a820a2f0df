"""A beam's step in two Triton kernels: the first finds every vocabulary block's likeliest tokens (triton_draws.py), the second
does all the rest, one program a request. The twin is beam_step.beam_step_reference.

    blocks' tokens [w rows, blocks * w] -> rows' tokens [w, w] -> their f -> w best of w * w -> columns, rows, tiles

No number that varies while serving is one that a variant is compiled for, but the width's class: `compile_all` has every variant.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaserve.kernels import triton_draws
from adaserve.kernels.beam_step import Next, Scores, Stand, Trees
from adaserve.kernels.triton_draws import BLOCK
from adaserve.runtime.batch import TAIL_ROWS

_WIDTHS = (4, 8)
"""Widths that a variant of the kernel can take, so that few of them are ever compiled. One of 16 would not fit the registers."""
_MOST = 1 << 13
"""Tokens that a program may choose from."""
_FEW = 1 << 11
"""Of which four warps take so many."""


@triton.jit
def _either(a, b):
    return a | b


@triton.jit(
    do_not_specialize=["blocks", "width", "columns", "depth", "tail_start", "height", "parts"],
    do_not_specialize_on_alignment=["inverse", "room", "slot", "known"],
)
def _extend_kernel(
    value, winner, total, inverse, room, slot, known, trees, path_prob, rows, start, tiles,
    blocks, width, columns, depth, tail_start, height, parts, VOCABULARY, K: tl.constexpr, C: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    request, requests = tl.program_id(0), tl.num_programs(0)
    b = tl.arange(0, K)  # rows of the last step, or the root alone
    lane, c = tl.arange(0, K)[None, :], tl.arange(0, C)[None, :]
    above = tl.where(depth > 1, width, 1)
    real = b < above
    row = (request * above + b).to(tl.int64)[:, None]
    found = blocks * width
    there = real[:, None] & (c < found)
    x = tl.load(value + row * found + c, mask=there, other=float("-inf"))
    best = tl.max(x, axis=1)[:, None]
    scale = tl.load(inverse + request)
    # Differences before scaling: an infinite best logit takes all the probability, a row of nothing has none.
    leads = there & (c % width == 0)
    share = tl.load(total + row * blocks + c // width, mask=leads, other=0.0)
    gap = tl.where(x == best, 0.0, x - best) * scale.to(tl.float32)
    mass = tl.sum(tl.where(leads, share * tl.exp(gap), 0.0), axis=1)

    top = tl.full((K, K), float("-inf"), tl.float32)  # of each row, the likeliest first
    place = tl.zeros((K, K), tl.int32)
    for rank in range(width):
        score, index = tl.max(x, axis=1, return_indices=True)  # ties to the lower id, which comes first
        top = tl.where(lane == rank, score[:, None], top)
        place = tl.where(lane == rank, index[:, None], place)
        x = tl.where(c == index[:, None], float("-inf"), x)
    candidate = real[:, None] & (lane < width)
    token = tl.load(winner + row * found + place, mask=candidate, other=0)
    gap = tl.where(top == best, 0.0, (top - best).to(tl.float64)) * scale
    edge = tl.exp(gap - tl.log(mass.to(tl.float64))[:, None])
    possible = (top > float("-inf")) & (edge > 0.0) & (depth <= tl.load(room + request))
    edge = tl.where(possible, tl.minimum(edge, 1.0), 0.0)

    # In float64, and as a product of numbers <= 1: then f cannot rise along a path, whatever the rounding.
    first = (depth - 1) * width
    before = request * columns + first - width + b
    size = requests * columns
    grows = real & (depth > 1)
    score = tl.load(path_prob + before, mask=grows, other=1.0)[:, None] * edge
    score = tl.reshape(tl.where(candidate, score, -1.0), (K * K,))
    ancestors = tl.load(trees + 2 * size + before, mask=grows, other=0)
    mask = tl.reshape(tl.broadcast_to(ancestors[:, None], (K, K)), (K * K,))
    token = tl.reshape(tl.minimum(token, VOCABULARY - 1), (K * K,))
    token = tl.where(score > 0.0, token, 0)

    # A candidate's place is the number of those that are better, or as good and come earlier.
    which = tl.arange(0, K * K)
    equal = (score[None, :] == score[:, None]) & (which[None, :] < which[:, None])
    rank = tl.sum(((score[None, :] > score[:, None]) | equal).to(tl.int32), axis=1)
    kept = rank < width
    rank = tl.where(kept, rank, 0)
    mask |= tl.full((K * K,), 1, tl.int64) << (first + rank).to(tl.int64)
    at = request * columns + first + rank
    tl.store(trees + at, token, mask=kept)
    tl.store(trees + size + at, tl.where(depth > 1, first - width + which // K, -1), mask=kept)
    tl.store(trees + 2 * size + at, mask, mask=kept)
    tl.store(trees + 3 * size + at, rank * 0 + depth, mask=kept)
    tl.store(path_prob + at, score, mask=kept)

    owner = tl.load(slot + request)
    prefix = tl.load(known + owner)
    at = request * width + rank
    count = requests * width
    tl.store(rows + at, token, mask=kept)
    tl.store(rows + count + at, prefix - 1 + depth + rank * 0, mask=kept)
    tl.store(rows + 2 * count + at, prefix + rank * 0, mask=kept)
    tl.store(rows + 3 * count + at, mask, mask=kept)
    tl.store(rows + 4 * count + at, tail_start + owner * TAIL + first + rank, mask=kept)
    tl.store(start + request + 1, (request + 1) * width)
    if request == 0:
        tl.store(start, 0)
    every = requests * parts
    for part in range(parts):
        own = kept & (rank // height == part)
        mine = tiles + request * parts + part
        tl.store(mine, owner)
        tl.store(mine + every, request * width + part * height)
        tl.store(mine + 2 * every, tl.minimum(width - part * height, height))
        tl.store(mine + 3 * every, prefix)
        tl.store(mine + 4 * every, tl.reduce(tl.where(own, mask, 0), 0, _either))


def able(vocabulary: int, width: int) -> bool:
    """Whether the kernels take a beam so wide over so many tokens."""
    return 0 < width <= min(_WIDTHS[-1], vocabulary) and _lanes(vocabulary, width) <= _MOST


def _lanes(vocabulary: int, width: int) -> int:
    widest = next(most for most in _WIDTHS if most >= width)
    return widest * triton.next_power_of_2(triton.cdiv(vocabulary, BLOCK) * widest)


def beam_step(scores: Scores, room: Tensor, trees: Trees, depth: int, width: int, stand: Stand) -> Next:
    """Arguments and result as of beam_step.beam_step; trees must be whole, as Trees.empty makes them."""
    n, columns = trees.token.shape
    (_, vocabulary), device, parts = scores.logits.shape, room.device, -(-width // stand.height)
    rows = torch.empty(5, n * width, dtype=torch.int64, device=device)  # [5, n * w]
    tiles = torch.empty(5, n * parts, dtype=torch.int64, device=device)  # [5, T]
    start = torch.empty(n + 1, dtype=torch.int64, device=device)  # [n + 1]
    value, winner, total = triton_draws.block_winners(scores.logits, scores.inverse, scores.temperature, scores.key, width)
    widest = next(most for most in _WIDTHS if most >= width)
    lanes = _lanes(vocabulary, width)
    _extend_kernel[(n,)](
        value, winner, total, scores.inverse, room, stand.slot, stand.known, trees.token, trees.path_prob, rows, start, tiles,
        total.shape[1], width, columns, depth, stand.tail_start, stand.height, parts, vocabulary,
        widest, lanes // widest, TAIL_ROWS, num_warps=4 if lanes <= _FEW else 8,
    )  # fmt: skip
    token, position, prefix, mask, dest = rows.unbind()
    slot, first, size, reach, nodes = tiles.unbind()
    return Next((token, position, prefix, mask, dest), start, (slot, first, size, reach, nodes))


def compile_all(logits: Tensor) -> None:
    """Compile every variant of the kernels for such scores [1, V], so that no request waits for it."""
    one = torch.ones(1, dtype=torch.float64, device=logits.device)  # [1]
    zero = torch.zeros(1, dtype=torch.int64, device=logits.device)  # [1]
    for width in _WIDTHS:
        if able(logits.shape[1], width):
            for key in (None, zero):
                trees = Trees.empty(1, width, logits.device)
                beam_step(Scores(logits, one, one, key), zero, trees, 1, width, Stand(zero, zero, 0, 1))
