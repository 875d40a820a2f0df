"""Stop strings are found wherever pieces of text happen to end."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from adaserve.server.stops import StopFinder

letters = st.text("ab\n", max_size=40)
stops = st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def run(finder: StopFinder, pieces: list[str]) -> tuple[str, bool]:
    shown = ""
    for piece in pieces:
        visible, stopped = finder.push(piece)
        shown += visible
        if stopped:
            return shown, True
    return shown + finder.flush(), False


def reference(text: str, pieces: list[str], words: list[str], include: bool) -> tuple[str, bool]:
    """The definition: after each piece, look at all the text there is."""
    seen = ""
    for piece in pieces:
        seen += piece
        found = [(seen.find(word), -len(word)) for word in words if word in seen]
        if found:
            at, length = min(found)
            return seen[: at - length] if include else seen[:at], True
    return text, False


@given(letters, st.lists(st.integers(0, 40), max_size=8), stops, st.booleans())
def test_agrees_with_looking_at_the_whole_text(text: str, cuts: list[int], words: list[str], include: bool) -> None:
    pieces = pieces_of(text, cuts)
    assert run(StopFinder(words, include), pieces) == reference(text, pieces, words, include)


@given(letters, stops)
def test_where_it_stops_does_not_depend_on_the_pieces_of_one_stop(text: str, words: list[str]) -> None:
    word = words[:1]
    assert run(StopFinder(word), [text]) == run(StopFinder(word), list(text))


@given(letters, stops)
def test_nothing_shown_is_ever_taken_back(text: str, words: list[str]) -> None:
    finder = StopFinder(words)
    shown = ""
    for character in text:
        visible, stopped = finder.push(character)
        shown += visible
        assert text.startswith(shown)
        assert not any(word in shown for word in words)
        if stopped:
            break


def test_text_is_held_back_only_while_it_may_become_a_stop() -> None:
    finder = StopFinder(["</end>"])
    assert finder.push("hello </e") == ("hello ", False)
    assert finder.push("m> x") == ("</em> x", False)
    assert StopFinder([]).push("anything") == ("anything", False)
