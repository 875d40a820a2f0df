import torch
from hypothesis import given
from hypothesis import strategies as st

from adaserve.request import SamplingParams
from adaserve.runtime.table import SamplingTable, SparseRows, Traits
from adaserve.step import Placement


def place(table: SamplingTable, slot: int, sampling: SamplingParams, seed: int = 0, stop_ids: tuple[int, ...] = (2,)) -> None:
    table.place(Placement(slot, (1, 2, 3), 2, sampling, seed, 4, stop_ids))


EVERYTHING = SamplingParams(
    temperature=0.5, top_k=9, top_p=0.5, min_p=0.1, presence_penalty=1, frequency_penalty=1, repetition_penalty=2,
    logit_bias={5: 1.0, 6: 2.0, 700: 3.0}, min_tokens=3,
)  # fmt: skip


def state(table: SamplingTable) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in vars(table).items() if isinstance(value, torch.Tensor)}


def test_parameters_are_replaced_whole() -> None:
    table, fresh = SamplingTable(3, 100), SamplingTable(3, 100)
    place(table, 1, EVERYTHING, seed=2**64 - 1)
    assert (table.temperature[1], table.top_p[1], table.min_p[1]) == (0.5, 0.5, 0.1)
    assert (table.presence[1], table.frequency[1], table.repetition[1]) == (1, 1, 2)
    assert (table.choice[1], table.top_k[1], table.prompt_length[1]) == (4, 9, 2)
    assert table.seed[1] == -1 and table.shortest[1] == 5 and table.edits[1]
    assert table.bias.ids[1].tolist() == [5, 6] and table.bias.numbers[1].tolist() == [1.0, 2.0]
    table.release(1)
    table.release(2)
    assert not table.bias.numbers.any()
    for each in (table, fresh):
        place(each, 1, SamplingParams(temperature=0), seed=7)
    for name, value in state(table).items():
        assert torch.equal(value, getattr(fresh, name)), name


def test_a_slot_taken_over_without_release_keeps_nothing() -> None:
    table = SamplingTable(2, 100)
    place(table, 0, EVERYTHING)
    place(table, 0, SamplingParams(temperature=0))
    assert table.traits((0,)) == Traits() and not table.edits[0] and not table.bias.numbers.any()


def test_traits_say_what_a_batch_needs() -> None:
    table = SamplingTable(6, 100)
    place(table, 0, SamplingParams(temperature=0, top_k=5, top_p=0.1))  # greedy: truncation cannot matter
    place(table, 1, SamplingParams(temperature=1))
    place(table, 2, SamplingParams(temperature=1, top_k=5))
    place(table, 3, SamplingParams(temperature=0, min_tokens=2), stop_ids=())  # nothing to forbid
    place(table, 4, SamplingParams(temperature=0, min_tokens=2), stop_ids=(3,))
    place(table, 5, SamplingParams(temperature=0, logit_bias={100: 1.0}))  # no such token
    assert table.traits(()) == table.traits((0, 3, 5)) == Traits()
    assert table.traits((0, 1)) == Traits(noise=True)
    assert table.traits((1, 2)) == Traits(noise=True, truncation=True, most_k=8)
    assert table.traits((4,)) == Traits(minimum=True)


@given(st.lists(st.tuples(st.integers(0, 3), st.dictionaries(st.integers(0, 9), st.floats(-9, 9), max_size=6)), max_size=9))
def test_sparse_rows_hold_what_was_set_last(writes: list[tuple[int, dict[int, float]]]) -> None:
    rows, expected = SparseRows(4, "cpu"), torch.zeros(4, 10, dtype=torch.float64)
    for slot, entries in writes:
        rows.set(slot, entries)
        expected[slot] = 0
        for token, number in entries.items():
            expected[slot, token] = number
    assert torch.equal(torch.zeros(4, 10, dtype=torch.float64).scatter_add(1, rows.ids, rows.numbers), expected)
