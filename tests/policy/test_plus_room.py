"""How many nodes and prompt rows a step is given: by what they bring and cost where passes come in few sizes."""

from dataclasses import replace
from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from adaserve.latency import LatencyModel
from adaserve.padding import GraphPadding, Unpadded
from adaserve.policy.plus.parts import LearningConstants
from adaserve.policy.plus.room import Room, Wish, best_room
from adaserve.policy.plus.yields import Yields
from adaserve.profile import Profile
from adaserve.step import Drafted, StepOutcome
from tests.scheduling.steps import outcome, request, scheduler

PROMPT_WORTH = 0.5


def curve(steps: list[float]) -> LatencyModel:
    """A staircase: 16 ms, and so many more every 32 rows."""
    points = {1: 16.0} | {32 * k: 16.0 + total for k, total in enumerate(accumulate(steps), 1)}
    return LatencyModel(Profile("stairs", points, 0.0, {1: 1.0}, 0.0, 0.0, 0.0, 16.0))


def falling(f: list[float], nodes: int, usual: int) -> float:
    """Tokens of the best of `usual` nodes whose worth falls like `f`."""
    order = sorted(f, reverse=True)
    return sum(order[min(k * len(order) // usual, len(order) - 1)] for k in range(nodes))


wishes = st.builds(
    lambda requests, nodes, prompt, least: Wish(requests, nodes, prompt, min(prompt, least)),
    st.integers(1, 90),
    st.integers(0, 250),
    st.integers(0, 256),
    st.integers(0, 64),
)
stairs = st.lists(st.sampled_from([0.0, 0.1, 0.5, 4.0, 9.0]), min_size=32, max_size=32).map(curve)


@given(wish=wishes, latency=stairs, f=st.lists(st.floats(0, 1), min_size=1, max_size=20), unit=st.floats(1e-4, 1e-2))
def test_no_size_around_the_wish_brings_more(wish: Wish, latency: LatencyModel, f: list[float], unit: float) -> None:
    padding = GraphPadding()

    def brought(nodes: int, usual: int) -> float:
        return falling(f, nodes, usual)

    def rows(room: Room) -> int:
        return padding.whole(padding.trees(wish.requests, min(room.nodes, wish.nodes), room.nodes), room.prompt)

    def surplus(room: Room) -> float:
        base = padding.trees(wish.requests, 0, 0)
        price = latency.added(base, rows(room) - base, unit)
        return brought(room.nodes, max(1, wish.nodes)) + PROMPT_WORTH * room.prompt - price

    found = best_room(wish, padding, latency, brought, unit, PROMPT_WORTH)
    usual = wish.nodes
    assert usual // 2 <= found.nodes <= usual + usual // 2 + 16
    assert wish.least <= found.prompt <= wish.prompt
    for nodes in (usual + usual // 8 + 4, usual, usual * 7 // 8, usual * 3 // 4, usual // 2):
        assert surplus(found) >= surplus(Room(nodes, wish.prompt)) - 1e-6
    if found.nodes < usual + usual // 2 + 16:
        assert rows(Room(found.nodes + 1, found.prompt)) > rows(found)  # what is paid for is given


@given(wish=wishes, latency=stairs)
def test_where_only_verified_nodes_cost_selection_decides(wish: Wish, latency: LatencyModel) -> None:
    found = best_room(wish, Unpadded(), latency, lambda nodes, usual: float(nodes), 1e-3, PROMPT_WORTH)
    assert found == Room(wish.nodes + wish.nodes // 2 + 16, wish.prompt)


def test_a_few_rows_beyond_a_cliff_are_given_up() -> None:
    """54 roots, 124 nodes and 80 prompt rows take 272 rows; 256 take 9 ms less."""
    cliff = curve([0.0] * 8 + [9.0] + [0.0] * 23)
    found = best_room(Wish(54, 124, 80, 64), GraphPadding(), cliff, lambda k, usual: 0.45 * k, 1 / 2900, PROMPT_WORTH)
    assert GraphPadding().whole(GraphPadding().trees(54, 124, found.nodes), found.prompt) == 256
    flat = curve([0.0] * 32)
    assert best_room(Wish(54, 124, 80, 64), GraphPadding(), flat, lambda k, usual: 0.45 * k, 1 / 2900, PROMPT_WORTH).prompt == 80


def test_what_nodes_bring_is_what_the_last_ones_did() -> None:
    yields = Yields(3, PROMPT_WORTH, LearningConstants())
    made = scheduler("adaserve+")
    made.admit([request("a", 3)], 0.0)
    plan = made.plan(0.0)
    assert plan is not None

    def step(path_prob: tuple[float, ...]) -> StepOutcome:
        n = len(path_prob)
        drafted = Drafted((0,) * n, (1,) * n, (0,) * n, path_prob, path_prob, (True,) * n, (False,) * n)
        return replace(outcome(plan), drafted=drafted)

    assert yields.brought(10, 20) < yields.brought(20, 20) == yields.brought(30, 20)
    yields.learn(step(path_prob=(0.9, 0.1, 0.5, 0.3)))
    assert yields.brought(2, 4) == 0.9 + 0.5
    assert yields.brought(4, 8) == 2 * (0.9 + 0.5)  # as many requests again
    totals = [yields.brought(k, 4) for k in range(8)]
    gains = [b - a for a, b in pairwise(totals)]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(gains))
    assert gains[-1] > 0
