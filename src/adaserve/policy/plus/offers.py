"""Offers: the steps that could be made, one for every depth of drafts, what a token is worth beside them, and which one pays."""

from collections.abc import Sequence
from dataclasses import dataclass

from adaserve.policy.plus.yields import Yields
from adaserve.policy.policy import Scene


@dataclass(frozen=True)
class Offer:
    """A step that could be made: expected tokens of all requests, and how long it takes."""

    tokens: float
    seconds: float


def offers_of(scene: Scene, yields: Yields, drafting: int, width: int, prompt: int) -> list[Offer]:
    """What plain decoding and every depth of drafts are expected to bring, beside so many rows of prompts.

    drafting: how many are drafted for, with beams of so much width.
    """
    n, trees = len(scene.decoding), scene.padding.trees
    each = zip(yields.accepted, yields.nodes, strict=True) if drafting else ()
    tokens, nodes = [float(n)], 0.0
    rows = [trees(n, 0, 0) + prompt]
    for accepted, verified in each:
        tokens.append(tokens[-1] + drafting * accepted)
        nodes += drafting * verified
        likely = round(nodes)
        rows.append(trees(n, likely, likely) + prompt)
    return list(map(Offer, tokens, scene.latency.by_depth(rows, drafting, drafting * width, prompt=prompt)))


def worth(offers: Sequence[Offer], late: float | None, wanted: bool) -> float:
    """Seconds that a token is worth: as many as one took of late, for as much could be had of them elsewhere.

    Never more than one takes now in plain decoding, the first of the offers: to pay more is to be slower. And where nobody else
    waits for the time, what was cheap in the last crowd is no measure: then no less than one takes by the best of the offers.
    late: None where nothing is known yet. wanted: whether somebody waits.
    """
    each = [offer.seconds / max(1.0, offer.tokens) for offer in offers]
    found = each[0] if late is None else min(late, each[0])
    return found if wanted else max(found, min(each))


def best_depth(offers: Sequence[Offer], price: float) -> int:
    """The depth with the largest surplus of tokens over what the time is worth; offers: by depth, plain decoding first.

    price: seconds that a token is worth. Of equals the least.
    """
    return max(range(len(offers)), key=lambda k: offers[k].tokens * price - offers[k].seconds)
