"""Padding: how many rows a pass computes on a machine that runs passes in a few sizes only (CUDA graphs).

    trees    | roots and nodes, padded requests and nodes that might have been chosen |
    whole    | trees                                                                  | prompt chunks | up to a bucket of rows |

The host fixes these sizes before the device has chosen its nodes, so what is allowed for is paid for.
"""

from bisect import bisect_left, bisect_right
from typing import Protocol

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, *range(64, 320, 16), *range(320, 513, 32))
"""Buckets of rows of a pass that is captured by itself. Larger passes are long enough to be launched as they come."""


class Padding(Protocol):
    """How many rows are computed for rows that are needed."""

    def trees(self, requests: int, nodes: int, most: int) -> int:
        """Rows of the trees of so many requests, of which `nodes` nodes are verified, and up to `most` might have been."""
        ...

    def whole(self, trees: int, prompt: int) -> int:
        """Rows of a pass over so many rows of trees and of prompts."""
        ...

    def nodes_within(self, requests: int, prompt: int, rows: int) -> int:
        """The most nodes that may be allowed for, and verified, in a pass of at most `rows` rows; below 0 if none fits at all."""
        ...

    def prompt_within(self, trees: int, rows: int) -> int:
        """The most prompt rows beside so many of trees in a pass of at most `rows` rows; below 0 if not even these fit."""
        ...

    @property
    def pays_for_room(self) -> bool:
        """Whether nodes that might have been verified are computed like those that are."""
        ...


class Unpadded:
    """Passes hold exactly what there is, as on a CPU."""

    def trees(self, requests: int, nodes: int, most: int) -> int:
        """What is verified."""
        return requests + nodes

    def whole(self, trees: int, prompt: int) -> int:
        """Their sum."""
        return trees + prompt

    def nodes_within(self, requests: int, prompt: int, rows: int) -> int:
        """What the others leave."""
        return rows - requests - prompt

    def prompt_within(self, trees: int, rows: int) -> int:
        """What the trees leave."""
        return rows - trees

    @property
    def pays_for_room(self) -> bool:
        """They are not."""
        return False


class GraphPadding:
    """Passes are captured in the sizes of `places`, or with prompt chunks in those of ROWS: from 64 to 512 these are the same."""

    def trees(self, requests: int, nodes: int, most: int) -> int:
        """What might have been verified, rounded up twice: requests alone, then all together."""
        return places(requests) if most <= 0 else places(places(requests) + most)

    def whole(self, trees: int, prompt: int) -> int:
        """The trees alone, or all up to the next bucket."""
        return trees if prompt == 0 else bucket(trees + prompt) or trees + prompt

    def nodes_within(self, requests: int, prompt: int, rows: int) -> int:
        """What the others leave of the largest sizes that are no larger."""
        left = rows if prompt == 0 else bucket_within(rows) - prompt
        return places_within(left) - places(requests)

    def prompt_within(self, trees: int, rows: int) -> int:
        """What the trees leave of the largest bucket that is no larger; none, where they fit alone."""
        return max(bucket_within(rows) - trees, min(rows - trees, 0))

    @property
    def pays_for_room(self) -> bool:
        """They are."""
        return True


def places(count: int) -> int:
    """So many requests, rounded up to one of a few numbers, that not every number needs graphs of its own."""
    step = _places_apart(count)
    return -(-count // step) * step


def places_within(count: int) -> int:
    """The same rounded down."""
    step = _places_apart(count)
    return count // step * step


def _places_apart(count: int) -> int:
    return 1 if count <= 4 else 2 if count <= 8 else 4 if count <= 16 else 8 if count <= 64 else 16 if count <= 320 else 32


def power_of_two(count: int) -> int:
    """So many, rounded up to a power of two; 0 of nothing."""
    return 1 << (count - 1).bit_length() if count else 0


def bucket(rows: int) -> int | None:
    """The smallest bucket that holds so many rows, or None."""
    at = bisect_left(ROWS, rows)
    return ROWS[at] if at < len(ROWS) else None


def bucket_within(rows: int) -> int:
    """The most rows of a pass that computes no more than so many: a bucket, or any number beyond them."""
    at = bisect_right(ROWS, rows)
    return rows if at == len(ROWS) else ROWS[at - 1] if at else 0


def most_nodes(padding: Padding, requests: int, prompt: int, rows: int) -> int:
    """The most nodes that may be allowed for in a pass that computes at most `rows` rows; 0 if there is no room for any."""
    return max(0, padding.nodes_within(requests, prompt, rows))


def most_prompt(padding: Padding, trees: int, prompt: int, most: int) -> int:
    """The most prompt rows, from `prompt` to `most`, that cost no more than `prompt` of them beside so many rows of trees."""
    if prompt <= 0 or most <= prompt:
        return prompt
    return min(most, padding.prompt_within(trees, padding.whole(trees, prompt)))
