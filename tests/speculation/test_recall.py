"""Memories of tenants' texts against a plain search, their bounds, and what never crosses from one tenant to another."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.speculation.ngram import NgramDrafter
from adaserve.speculation.recall import TenantMemories, TextMemory
from adaserve.step import Drafted
from adaserve.tree import Source

Action = tuple[int, list[int] | None]
"""A writer, and what it appends; None: its text ends."""

tokens_of = st.lists(st.integers(0, 2), max_size=12)
actions_of = st.lists(st.tuples(st.integers(0, 2), st.none() | tokens_of), max_size=24)


class PlainMemory:
    """Everything that was ever told, one token a line; what counts is found by counting."""

    def __init__(self, tokens: int, sizes: range) -> None:
        self.room, self.sizes = tokens // 2, sizes
        self.log: list[tuple[int, int]] = []  # text, token
        self.text: dict[int, int] = {}  # writer -> its text
        self.texts = 0

    def append(self, writer: int, tokens: list[int]) -> None:
        if writer not in self.text:
            self.text[writer] = self.texts = self.texts + 1
        self.log += [(self.text[writer], token) for token in tokens]

    def end(self, writer: int) -> None:
        self.text.pop(writer, None)

    def first(self) -> int:
        """The oldest line that is remembered."""
        return max((len(self.log) - 1) // self.room - 1, 0) * self.room

    def continuation(self, known: list[int], length: int, beyond: int) -> tuple[list[int], int]:
        for size in sorted(self.sizes, reverse=True):
            for at in range(len(self.log) - 1, self.first() - 1, -1):
                text = self.log[at][0]
                before = [token for one, token in self.log[:at] if one == text][-size:]
                if beyond < size <= len(known) and before == known[-size:]:
                    end = (at // self.room + 1) * self.room
                    return [token for one, token in self.log[at:end] if one == text][:length], size
        return [], 0


@given(actions_of, st.integers(2, 30), st.integers(1, 3), st.integers(0, 2), tokens_of, st.integers(1, 5), st.integers(0, 3))
def test_equals_a_plain_search(
    actions: list[Action], tokens: int, shortest: int, more: int, known: list[int], length: int, beyond: int
) -> None:
    sizes = range(shortest, shortest + more + 1)
    memory, plain = TextMemory(tokens, sizes), PlainMemory(tokens, sizes)
    for writer, said in actions:
        if said is None:
            memory.end(writer)
            plain.end(writer)
        else:
            memory.append(writer, said)
            plain.append(writer, said)
        found = memory.continuation(known, length, beyond)
        assert (found.tokens, found.size) == plain.continuation(known, length, beyond)
        assert memory.size == len(plain.log) - plain.first() <= tokens


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 40), max_size=6), st.integers(2, 50))
def test_appending_bit_by_bit_changes_nothing(text: list[int], cuts: list[int], tokens: int) -> None:
    whole, parts = TextMemory(tokens, range(1, 4)), TextMemory(tokens, range(1, 4))
    whole.append(0, text)
    edges = [0, *sorted(cuts), len(text)]
    for start, end in pairwise(edges):
        parts.append(0, text[start:end])
    for known in ([0], [1, 2], text[:3], text[-3:]):
        assert whole.continuation(known, 4, 0) == parts.continuation(known, 4, 0)


def test_what_is_old_is_forgotten() -> None:
    memory = TextMemory(100, range(2, 4))
    memory.append(0, [1, 2, 3, 4])
    assert memory.continuation([1, 2], 2, 0).tokens == [3, 4]
    memory.append(1, [9] * 100)
    assert memory.continuation([1, 2], 2, 0).size == 0
    assert memory.size <= 100


@given(st.lists(st.sampled_from("abcde"), max_size=40), st.integers(1, 4))
def test_the_tenants_that_came_last_have_memories(salts: list[str], tenants: int) -> None:
    memories = TenantMemories(10, tenants, 1, 1)
    recent: list[str] = []
    for salt in salts:
        kept = memories.of(salt)
        assert (kept.size == 0) == (salt not in recent), "a tenant's memory lasts as long as it is among the last"
        kept.append(0, [1])
        recent = [*[other for other in recent if other != salt], salt][-tenants:]
        assert len(memories) == len(recent)
    memories.forget()
    assert len(memories) == 0


def drafter() -> NgramDrafter:
    return NgramDrafter(1, 3, TenantMemories(40, 8, 2, 3))


@given(st.lists(st.tuples(st.integers(0, 5), tokens_of, st.booleans()), max_size=30))
def test_nothing_crosses_tenants(actions: list[tuple[int, list[int], bool]]) -> None:
    """What is proposed to one tenant is the same, whatever others say and whether there are others at all."""
    everybody, alone = drafter(), drafter()
    here: set[int] = set()
    for slot, tokens, comes in actions:
        salt = "ours" if slot % 2 else f"another {slot}"
        for one in (everybody, alone) if slot % 2 else (everybody,):
            if comes or slot not in here:
                one.place(slot, [0, *tokens], salt)
            else:
                one.append(slot, tokens)
        here.add(slot)
        ours = sorted(slot for slot in here if slot % 2)
        room, drafting = [3] * len(ours), [True] * len(ours)
        found, expected = everybody.propose(ours, 3, room, drafting), alone.propose(ours, 3, room, drafting)
        assert found.token.equal(expected.token) and found.path_prob.equal(expected.path_prob)


def said(one: NgramDrafter, slot: int, depth: int = 2) -> list[int]:
    tree = one.propose([slot], depth, [depth], [True])
    return tree.token[0][tree.path_prob[0] > 0].tolist()


def test_a_tenants_texts_help_its_requests_alone() -> None:
    one = drafter()
    one.place(0, [1, 2, 3, 4, 5], "a")
    one.place(1, [8, 2, 3], "a")  # while the other runs
    one.place(2, [8, 2, 3], "b")
    assert (said(one, 1), said(one, 2)) == ([4, 5], [])
    one.release(0)
    assert said(one, 1) == [4, 5]  # and after it has gone
    one.forget()
    assert said(one, 1) == []


def test_the_longest_suffix_decides_and_of_equal_ones_the_requests_own() -> None:
    one = drafter()
    one.place(0, [1, 2, 3, 4, 5, 6], "a")
    one.place(1, [2, 3, 7, 2, 3], "a")  # 2 3 in both
    assert said(one, 1, 1) == [7]
    one.place(1, [2, 3, 7, 1, 2, 3], "a")  # 1 2 3 elsewhere alone
    assert said(one, 1, 1) == [4]
    one.place(1, [9, 3, 7, 8, 3], "a")  # a single token is found in its own text alone
    assert said(one, 1, 1) == [7]


def test_a_text_goes_on_where_it_was_and_ends_when_its_slot_is_taken() -> None:
    one = drafter()
    one.place(0, [1, 2], "a")
    one.append(0, [3])
    one.place(0, [4, 5], "a")
    one.place(1, [9, 1, 2], "a")
    assert said(one, 1) == [3]
    one.place(1, [9, 2, 3], "a")  # 4 follows in another text
    assert said(one, 1) == []


def test_acceptance_is_learned_by_where_a_proposal_came_from() -> None:
    """Earlier texts always right, its own never, both after two tokens: each is believed by its own record."""
    one = drafter()
    one.place(0, [1, 2, 3], "a")
    one.place(1, [9, 1, 2], "a")
    one.place(2, [5, 6, 7, 5, 6], "b")
    for _ in range(100):
        one.propose([1, 2], 1, [1, 1], [True, True])
        source = (int(Source.NGRAM),) * 2
        one.learn(Drafted((0, 1), (1, 1), source, (0.0, 0.0), (0.0, 0.0), (True, True), (True, False)), [1, 2])
    f = one.propose([1, 2], 1, [1, 1], [True, True]).path_prob
    assert f[0] > 0.9 and f[1] < 0.1


def test_refuses_nonsense() -> None:
    for numbers in ((1, 1, 1, 1), (2, 0, 1, 1), (2, 1, 0, 1), (2, 1, 3, 2)):
        with pytest.raises(ValueError, match="tenant|sizes"):
            TenantMemories(*numbers)
    with pytest.raises(ValueError, match="up to 4 tokens, but a request's own text only 2"):
        NgramDrafter(1, 2, TenantMemories())
