import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adaserve.request import SamplingParams
from adaserve.runtime.sampling import DrawRows, Draws, History, draw, process
from adaserve.runtime.table import SamplingTable
from adaserve.speculation.verifier import verify
from adaserve.step import Placement
from adaserve.tree import DraftTree
from tests.oracles import sampling as oracle
from tests.oracles.drafts import Node, ToyTarget, packed, path_of, random_nodes

VOCAB = 24


@st.composite
def sampling_params(draws: st.DrawFn) -> SamplingParams:
    """Every parameter that acts on the draw, each absent more often than not."""

    def sometimes(neutral: object, strategy: st.SearchStrategy) -> object:
        return draws(st.one_of(st.just(neutral), st.just(neutral), strategy))

    return SamplingParams(
        max_tokens=100,
        temperature=draws(st.sampled_from([0.0, 0.7, 1.0, 1.8])),
        top_k=sometimes(0, st.integers(1, VOCAB + 5)),
        top_p=sometimes(1.0, st.floats(0.1234, 0.987)),
        min_p=sometimes(0.0, st.floats(0.0123, 0.5)),
        presence_penalty=sometimes(0.0, st.floats(-2, 2)),
        frequency_penalty=sometimes(0.0, st.floats(-2, 2)),
        repetition_penalty=sometimes(1.0, st.floats(0.6, 1.9)),
        logit_bias=sometimes({}, st.dictionaries(st.integers(0, VOCAB + 3), st.floats(-5, 5), max_size=4)),
        min_tokens=sometimes(0, st.integers(1, 12)),
    )  # type: ignore[arg-type]


def placement(
    slot: int, tokens: list[int], prompt_length: int, sampling: SamplingParams, seed: int, choice: int = 0
) -> Placement:
    return Placement(slot, tuple(tokens), prompt_length, sampling, seed, choice, stop_ids=(3, 7, VOCAB + 9))


def history_of(sequences: dict[int, list[int]], slots: int) -> History:
    """Known tokens per slot; what lies behind them is rubbish, as after a release."""
    tokens = torch.full((slots, 64), 5)
    known = torch.zeros(slots, dtype=torch.int64)
    for slot, sequence in sequences.items():
        tokens[slot, : len(sequence)] = torch.tensor(sequence)
        known[slot] = len(sequence)
    return History(tokens, known)


def decode_plainly(target: ToyTarget, request: Placement, count: int) -> list[int]:
    """What the request must yield: token by token, by the oracle."""
    sequence = list(request.tokens)
    for _ in range(count):
        prompt, output = sequence[: request.prompt_length], sequence[request.prompt_length :]
        row = oracle.process(target.logits(sequence).tolist(), request.sampling, prompt, output, request.stop_ids)
        sequence.append(oracle.draw(row, request.sampling.temperature, request.seed, request.choice, len(sequence)))
    return sequence


def draw_step(
    target: ToyTarget, table: SamplingTable, sequences: dict[int, list[int]], decoding: tuple[int, ...],
    trees: list[list[Node]], finishing: tuple[int, ...], padding: int = 0,
) -> tuple[DraftTree, Draws, int]:  # fmt: skip
    """One pass: rows of trees, then one row for each slot whose prompt is done."""
    rows = len(decoding) + sum(map(len, trees)) + padding
    tree = packed(trees, [sequences[slot][-1] for slot in decoding], rows)
    history = history_of(sequences, len(table.seed))
    depth = max([0, *(len(path_of(tree, row)) for row in range(tree.rows))])
    logits = [
        target.logits([*sequences[decoding[int(tree.row[row])]], *path_of(tree, row)])
        if tree.row[row] < len(decoding) else torch.zeros(VOCAB, dtype=torch.float64)
        for row in range(tree.rows)
    ]  # fmt: skip
    logits += [target.logits(sequences[slot]) for slot in finishing]
    described = DrawRows.of(
        tree, torch.tensor(decoding + finishing), table.traits(tuple(decoding + finishing)), history.known, depth
    )
    return tree, draw(torch.stack(logits), described, table, history), depth


@settings(max_examples=40)
@given(st.lists(sampling_params(), min_size=1, max_size=5), st.integers(0, 10**9))
def test_speculation_gives_the_tokens_of_plain_decoding(samplings: list[SamplingParams], seed: int) -> None:
    rng = random.Random(seed)
    target, count = ToyTarget(VOCAB, seed), 14
    slots = rng.sample(range(8), len(samplings))
    table = SamplingTable(8, VOCAB)
    placements, goal = {}, {}
    for slot, sampling in zip(slots, samplings, strict=True):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 9))]
        placements[slot] = placement(slot, prompt, len(prompt), sampling, rng.randrange(-(2**63), 2**64), rng.randrange(3))
        table.place(placements[slot])
        goal[slot] = decode_plainly(target, placements[slot], count + 8)
    sequences = {slot: list(placements[slot].tokens) for slot in slots}
    gained_tokens = tree_steps = 0
    while any(len(sequences[slot]) < len(placements[slot].tokens) + count for slot in slots):
        members = [slot for slot in slots if len(sequences[slot]) < len(placements[slot].tokens) + count]
        rng.shuffle(members)
        finishing = tuple(slot for slot in members if len(sequences[slot]) == len(placements[slot].tokens))
        decoding = tuple(slot for slot in members if slot not in finishing)

        def propose(slot: int, path: list[int]) -> int:
            """A drafter that is often right."""
            future = goal[slot][len(sequences[slot]) :]
            return future[len(path)] if future[: len(path)] == path and rng.random() < 0.7 else rng.randrange(VOCAB)

        trees = [random_nodes(rng, 6, 3, lambda path, slot=slot: propose(slot, path)) for slot in decoding]  # type: ignore[misc]
        tree, draws, depth = draw_step(target, table, sequences, decoding, trees, finishing, rng.randrange(3))
        assert draws.finite.all()
        verdict = verify(tree, draws.token[: tree.rows], depth)
        for row, slot in enumerate(decoding):
            gained = verdict.tokens[row, : verdict.length[row]].tolist()
            sequences[slot] += gained
            gained_tokens, tree_steps = gained_tokens + len(gained), tree_steps + 1
        for row, slot in enumerate(finishing):
            sequences[slot].append(int(draws.token[tree.rows + row]))
        for slot in slots:
            assert sequences[slot] == goal[slot][: len(sequences[slot])]
    assert gained_tokens > 1.2 * tree_steps  # not vacuous: drafts were accepted


def greedy_rows(table: SamplingTable, slots: tuple[int, ...], position: int = 10) -> DrawRows:
    """Rows without trees: row i belongs to slots[i]."""
    index = torch.arange(len(slots))
    at = torch.full_like(index, position)
    return DrawRows(torch.tensor(slots), at, index * 0, index, index * 0, 0, table.traits(slots))


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_row_does_not_depend_on_its_neighbours(top_p: float) -> None:
    count, vocab_size = 9, 8193
    table = SamplingTable(count, vocab_size)
    for slot in range(count):
        table.place(placement(slot, [1], 1, SamplingParams(temperature=0.5 + slot / 4, top_p=top_p), slot))
    logits = torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(1))
    history = history_of({slot: [1] * 10 for slot in range(count)}, count)
    together = draw(logits, greedy_rows(table, tuple(range(count))), table, history).token
    for order in ([8, 7, 6, 5, 4, 3, 2, 1, 0], [4], [2, 2, 7], [0, 3, 1]):
        rows = greedy_rows(table, tuple(order))
        assert torch.equal(draw(logits[order], rows, table, history).token, together[order])


def frequencies(sampling: SamplingParams, logits: torch.Tensor, draws: int, one_noise: bool = False) -> torch.Tensor:
    """Draw one row many times, at successive positions, and count the tokens."""
    table = SamplingTable(1, logits.shape[0])
    table.place(placement(0, [1, 2], 1, sampling, 1234))
    index = torch.arange(draws)
    position = torch.full_like(index, 50) if one_noise else index + 2
    rows = DrawRows(index * 0, position, index * 0, index, index * 0, 0, table.traits((0,)))
    token = draw(logits.expand(draws, -1), rows, table, history_of({0: [1, 2]}, 1)).token
    return token.bincount(minlength=logits.shape[0])


SAMPLINGS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.5, top_k=7),
    SamplingParams(temperature=1.0, top_p=0.8),
    SamplingParams(temperature=2.0, min_p=0.1, logit_bias={0: 1.5}),
    SamplingParams(temperature=1.0, top_k=12, top_p=0.9, repetition_penalty=1.3, frequency_penalty=0.5),
]


def chi_square(counts: torch.Tensor, probability: torch.Tensor) -> float:
    """The p-value of counts under probabilities; tokens that cannot be drawn must not have been."""
    possible = probability > 0
    if counts[~possible].any():
        return 0.0
    return float(stats.chisquare(counts[possible].numpy(), (probability[possible] * counts.sum()).numpy()).pvalue)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_draws_follow_the_processed_distribution(sampling: SamplingParams) -> None:
    logits = torch.randn(20, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    row = oracle.process(logits.tolist(), sampling, [1], [2], [])
    probability = torch.tensor(oracle.softmax([x / sampling.temperature for x in row]), dtype=torch.float64)
    draws = 20000
    assert chi_square(frequencies(sampling, logits, draws), probability) > 1e-4
    # Controls that must fail: noise reused across positions, and a slightly wrong distribution.
    assert chi_square(frequencies(sampling, logits, draws, one_noise=True), probability) < 1e-9
    wrong = probability ** (1 / 1.3)
    assert chi_square(frequencies(sampling, logits, draws), wrong / wrong.sum()) < 1e-4


def test_successive_positions_seeds_and_choices_are_independent() -> None:
    # Pairs of draws that differ in one word of the key must be as the product of their distributions.
    size, vocab_size = 20000, 4
    probability = torch.full((vocab_size * vocab_size,), 1 / vocab_size**2, dtype=torch.float64)
    index = torch.arange(2 * size)
    table = SamplingTable(2, vocab_size)
    logits = torch.zeros(2 * size, vocab_size)

    def pairs(second: Placement, shift: int) -> torch.Tensor:
        table.place(placement(0, [1], 1, SamplingParams(temperature=1.0), 77))
        table.place(second)
        place = index % size + 5 + shift * (index // size)
        rows = DrawRows(index // size, place, index * 0, index, index * 0, 0, table.traits((0, 1)))
        token = draw(logits, rows, table, history_of({}, 2)).token
        return (token[:size] * vocab_size + token[size:]).bincount(minlength=vocab_size**2)

    params = SamplingParams(temperature=1.0)
    assert chi_square(pairs(placement(1, [1], 1, params, 78), 0), probability) > 1e-4
    assert chi_square(pairs(placement(1, [1], 1, params, 77, choice=1), 0), probability) > 1e-4
    assert chi_square(pairs(placement(1, [1], 1, params, 77), 1), probability) > 1e-4
    assert chi_square(pairs(placement(1, [1], 1, params, 77), 0), probability) < 1e-9  # control: the same key


@pytest.mark.parametrize("vocab_size", [100, 8193, 10007, 49152, 151936])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_ids_are_valid_and_bad_rows_are_flagged(vocab_size: int, dtype: torch.dtype) -> None:
    samplings = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=1),
        SamplingParams(temperature=1, top_p=0.5, top_k=vocab_size + 1),
        SamplingParams(temperature=0, repetition_penalty=1.5),
    ]
    bad = {"nan": math.nan, "one nan": math.nan, "+inf": math.inf, "-inf": -math.inf}
    logits = torch.randn(5, vocab_size, generator=torch.Generator().manual_seed(2)).to(dtype)
    logits[1], logits[2, vocab_size // 2], logits[3, -1], logits[4] = bad.values()
    for sampling in samplings:
        table = SamplingTable(5, vocab_size)
        for slot in range(5):
            table.place(placement(slot, [1], 1, sampling, slot))
        draws = draw(logits, greedy_rows(table, (0, 1, 2, 3, 4)), table, history_of({slot: [1] for slot in range(5)}, 5))
        assert ((draws.token >= 0) & (draws.token < vocab_size)).all()
        assert draws.finite.tolist() == [True, False, False, False, False]


def test_one_impossible_logit_is_not_an_error() -> None:
    table = SamplingTable(1, 3)
    table.place(placement(0, [1], 1, SamplingParams(temperature=1), 0))
    draws = draw(torch.tensor([[-math.inf, 0.0, -math.inf]]), greedy_rows(table, (0,)), table, history_of({0: [1]}, 1))
    assert draws.token.tolist() == [1] and draws.finite.all()


def test_ties_go_to_the_lowest_id() -> None:
    table = SamplingTable(1, 1000)
    table.place(placement(0, [1], 1, SamplingParams(temperature=0), 0))
    logits = torch.zeros(1, 1000)
    logits[0, [300, 700, 999]] = 2
    assert draw(logits, greedy_rows(table, (0,)), table, history_of({0: [1]}, 1)).token.tolist() == [300]


def test_rows_of_others_are_not_processed() -> None:
    # One request with penalties among greedy ones: only its rows are copied and changed.
    table = SamplingTable(3, VOCAB)
    for slot, sampling in enumerate((SamplingParams(temperature=0), SamplingParams(temperature=0, presence_penalty=2.0))):
        table.place(placement(slot, [1], 1, sampling, 0))
    logits = torch.zeros(2, VOCAB)
    logits[:, 1], logits[:, 2] = 1.0, 0.5
    history = history_of({0: [4, 1], 1: [4, 1], 2: []}, 3)
    rows = greedy_rows(table, (0, 1))
    assert draw(logits, rows, table, history).token.tolist() == [1, 2]
    assert process(logits, torch.tensor([1]), rows, table, history)[0, :3].tolist() == [0.0, -1.0, 0.5]
    assert logits[1, 1] == 1.0
    assert not table.traits((0,)).edits_logits and table.traits((0, 1)).edits_logits
