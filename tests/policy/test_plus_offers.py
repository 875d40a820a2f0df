"""Offers of `adaserve+`: the depth that pays, and what a token is worth."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaserve.policy.plus.offers import Offer, best_depth, worth

OFFERS = st.lists(st.builds(Offer, st.floats(1.0, 50.0), st.floats(1e-3, 1.0)), min_size=1, max_size=7)


@given(st.lists(st.tuples(st.floats(0.5, 50.0), st.floats(1e-3, 1.0)), min_size=1, max_size=7))
def test_where_time_is_worth_its_best_use_that_use_is_made_of_it(made: list[tuple[float, float]]) -> None:
    """With a token worth what one takes at best, the depth with the most tokens a second has the largest surplus."""
    offers = [Offer(tokens, seconds) for tokens, seconds in made]
    best = min(offer.seconds / offer.tokens for offer in offers)
    found = offers[best_depth(offers, best)]
    assert found.seconds / found.tokens == pytest.approx(best, rel=1e-9)
    assert offers[best_depth(offers, 1e9)].tokens == pytest.approx(max(offer.tokens for offer in offers))  # time costs nothing


@given(OFFERS, st.one_of(st.none(), st.floats(1e-4, 1.0)), st.booleans())
def test_no_token_is_dearer_than_in_plain_decoding(offers: list[Offer], late: float | None, wanted: bool) -> None:
    """And where nobody waits for the time, none is cheaper than by its best use."""
    each = [offer.seconds / offer.tokens for offer in offers]
    price = worth(offers, late, wanted)
    assert price <= each[0]
    assert wanted or price >= min(each)
    if late is not None and (wanted or late >= min(each)):
        assert price == min(late, each[0])
