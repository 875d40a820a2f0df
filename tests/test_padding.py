"""Padding: what fits does fit, nothing more would, and where nothing is padded all is as if there were no such thing."""

from hypothesis import given
from hypothesis import strategies as st

from adaserve.padding import (
    ROWS,
    GraphPadding,
    Padding,
    Unpadded,
    bucket,
    bucket_within,
    most_nodes,
    most_prompt,
    places,
    places_within,
)

COUNTS = st.integers(0, 600)
PADDINGS = st.sampled_from([Unpadded(), GraphPadding()])


def computed(padding: Padding, requests: int, nodes: int, prompt: int) -> int:
    return padding.whole(padding.trees(requests, nodes, nodes), prompt)


@given(COUNTS, COUNTS)
def test_places_and_buckets_hold_what_they_should_and_never_shrink(low: int, more: int) -> None:
    assert places_within(low) <= low <= places(low) <= places(low + more)
    assert places(places_within(low)) == places_within(low)
    assert (bucket_within(low) == low) == (bucket(low) in (low, None)) or low == 0
    for rows in (low, low + more):
        found = bucket(rows)
        assert found in ROWS if rows <= ROWS[-1] else found is None
        assert found is None or found >= rows


@given(PADDINGS, COUNTS, COUNTS, COUNTS)
def test_passes_compute_all_that_is_needed(padding: Padding, requests: int, nodes: int, prompt: int) -> None:
    assert computed(padding, requests, nodes, prompt) >= requests + nodes + prompt


@given(PADDINGS, COUNTS, COUNTS, COUNTS)
def test_the_most_nodes_fit_and_one_more_would_not(padding: Padding, requests: int, prompt: int, rows: int) -> None:
    nodes = most_nodes(padding, requests, prompt, rows)
    assert nodes == 0 or computed(padding, requests, nodes, prompt) <= rows
    assert computed(padding, requests, nodes + 1, prompt) > rows


@given(PADDINGS, COUNTS, COUNTS, COUNTS)
def test_further_prompt_rows_are_free_and_the_next_would_not_be(padding: Padding, trees: int, prompt: int, most: int) -> None:
    rows = most_prompt(padding, trees, prompt, most)
    assert prompt <= rows <= max(prompt, most)
    assert padding.whole(trees, rows) == padding.whole(trees, prompt)
    assert prompt == 0 or rows >= most or padding.whole(trees, rows + 1) > padding.whole(trees, prompt)


@given(PADDINGS, COUNTS, st.integers(0, 1200))
def test_prompt_rows_within_a_size_fit_and_one_more_would_not(padding: Padding, trees: int, rows: int) -> None:
    fitting = padding.prompt_within(trees, rows)
    assert (fitting >= 0) == (trees <= rows)
    if fitting >= 0:
        assert padding.whole(trees, fitting) <= rows < padding.whole(trees, fitting + 1)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_where_nothing_is_padded_room_costs_nothing(requests: int, nodes: int, prompt: int, rows: int) -> None:
    padding = Unpadded()
    assert padding.trees(requests, nodes, nodes + 100) == requests + nodes
    assert most_nodes(padding, requests, prompt, rows) == max(0, rows - requests - prompt)
    assert most_prompt(padding, requests, prompt, prompt + 100) == prompt


def test_a_budget_that_ends_on_a_bucket_is_not_exceeded() -> None:
    # 60 requests take 64 places; beside 160 prompt rows 96 nodes fill 320 rows, where 100 would have computed 352.
    assert most_nodes(GraphPadding(), 60, 160, 320) == 96
    assert computed(GraphPadding(), 60, 100, 160) == 352


def test_trees_of_many_rows_fill_a_bucket() -> None:
    """They are captured like passes with prompt chunks (executor/check.py), and predicted without another padding."""
    assert all(bucket(places(count)) == places(count) for count in range(57, 513))
