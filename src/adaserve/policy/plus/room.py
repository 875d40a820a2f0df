"""Room: how many nodes a step may verify, and prompt rows beside them, where passes come in a few sizes only.

There a node that is allowed for is paid for, verified or not, and the row after an edge costs as much as dozens. So a few sizes
around the usual one are compared by what they are expected to bring, and the nodes of the best one are free:

    rows |  roots  |  nodes, the best first    | prompt rows | padding |
                              ^ half ... a few more than usual ^ as wished, or as many as the next smaller size holds
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from adaserve.latency import LatencyModel
from adaserve.padding import Padding


@dataclass(frozen=True)
class Wish:
    """What a step would compute if it cost nothing extra.

    requests: who decode. nodes: usually verified of so many. prompt, least: prompt rows, and how many of them are not given up.
    """

    requests: int
    nodes: int
    prompt: int
    least: int


@dataclass(frozen=True)
class Room:
    """How many nodes may be verified, and prompt rows beside them."""

    nodes: int
    prompt: int


def best_room(
    wish: Wish, padding: Padding, latency: LatencyModel, brought: Callable[[int, int], float], unit: float, prompt_worth: float
) -> Room:
    """The room with the largest surplus of tokens over their time; of equals the larger.

    brought(k, usual): tokens that the best k nodes are expected to bring where `usual` are verified. unit: seconds that a token
    is worth. prompt_worth: of a prompt row, in tokens.
    Where only what is verified is paid for, it is half as many nodes again as usual: selection stops where they cease to pay.
    """
    usual = wish.nodes
    most = usual + usual // 2 + 16
    if not padding.pays_for_room:
        return Room(most, wish.prompt)

    sizes = (usual + usual // 8 + 4, usual, usual * 7 // 8, usual * 3 // 4, usual // 2)
    trees = [padding.trees(wish.requests, min(nodes, usual), nodes) for nodes in sizes]
    smallest = padding.whole(trees[-1], 0)

    def choices() -> Iterator[tuple[int, int, int]]:
        """Rows that are computed, and for how many nodes and prompt rows."""
        for nodes, rows in zip(sizes, trees, strict=True):
            whole = padding.whole(rows, wish.prompt)
            yield whole, nodes, wish.prompt
            if wish.least < wish.prompt:
                fewer = padding.prompt_within(rows, whole - 1)
                if wish.least <= fewer < wish.prompt:
                    yield padding.whole(rows, fewer), nodes, fewer

    def surplus(choice: tuple[int, int, int]) -> float:
        rows, nodes, prompt = choice
        return brought(nodes, max(usual, 1)) + prompt_worth * prompt - latency.added(smallest, max(0, rows - smallest), unit)

    paid, _, prompt = max(choices(), key=surplus)
    return Room(min(most, padding.nodes_within(wish.requests, prompt, paid)), prompt)
