"""Fair shares between clients: the Virtual Token Counter (Sheng et al., OSDI'24, arXiv 2401.00588, Algorithm 2)."""

from collections import deque
from collections.abc import Iterator

from adaserve.policy.queues import without
from adaserve.request import RequestState


class FairQueue:
    """Admits a request of the client that has been served least; each client's own requests in order of arrival.

    A counter per client says how much it was served: `prompt_weight` for each prompt token, charged at admission, and
    `output_weight` for each token produced (the paper's w_p = 1 and w_q = 2). A client that comes back from idleness is lifted to
    the least counter of those who wait, or to that of the client whose waiting requests were used up last: what it did not use
    it cannot claim later.

    A request's client is its SLO class (`slo_class`), for requests state no tenant; those without a class are one client.
    """

    def __init__(self, prompt_weight: float = 1.0, output_weight: float = 2.0) -> None:
        self._prompt_weight = prompt_weight
        self._output_weight = output_weight
        self._counter: dict[str | None, float] = {}
        self._waiting: dict[str | None, deque[RequestState]] = {}  # no client without requests
        self._left_last: str | None = None

    @property
    def counters(self) -> dict[str | None, float]:
        """How much each client has been served, in weighted tokens, lifts included."""
        return dict(self._counter)

    def push(self, state: RequestState) -> None:
        client = state.request.slo_class
        if client not in self._waiting:
            others = [self._counter[c] for c in self._waiting] or [self._counter.get(self._left_last, 0.0)]
            self._counter[client] = max(self._counter.get(client, 0.0), min(others))
        self._waiting.setdefault(client, deque()).append(state)

    def put_back(self, state: RequestState) -> None:
        self._waiting.setdefault(state.request.slo_class, deque()).appendleft(state)

    def first(self, now: float) -> RequestState | None:
        heads = [waiting[0] for waiting in self._waiting.values()]
        return min(heads, key=lambda s: (self._counter[s.request.slo_class], s.request.arrived), default=None)

    def take(self, state: RequestState) -> None:
        self.drop(state)
        if not state.preemptions:  # who lost its pages has been charged for its prompt before
            self._counter[state.request.slo_class] += self._prompt_weight * len(state.request.prompt)

    def drop(self, state: RequestState) -> None:
        client = state.request.slo_class
        left = without(self._waiting.pop(client), state)
        if left:
            self._waiting[client] = left
        else:
            self._left_last = client

    def served(self, state: RequestState, tokens: int) -> None:
        self._counter[state.request.slo_class] += self._output_weight * tokens

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[RequestState]:
        for waiting in self._waiting.values():
            yield from waiting
