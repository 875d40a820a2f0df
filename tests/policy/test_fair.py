"""Virtual Token Counter: the paper's Algorithm 2, and its bound on how far two busy clients' service may differ."""

from hypothesis import given, settings
from hypothesis import strategies as st

from adaserve.policy.fair import FairQueue
from adaserve.scheduling.scheduler import Scheduler
from tests.scheduling.steps import request, scheduler, step, waiting

PROMPT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0


def serve(queue: FairQueue, prompt: int, produced: int) -> str | None:
    """Admit whoever comes first and let it produce."""
    state = queue.first(0.0)
    assert state is not None
    queue.take(state)
    queue.served(state, produced)
    return state.request.slo_class


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50), st.integers(0, 50)), max_size=60), st.randoms())
def test_counters_follow_the_paper(events, rng) -> None:
    """A plain reading of Algorithm 2: counters as dictionaries, requests as (client, prompt) in one list."""
    queue = FairQueue()
    counter: dict[str, float] = {}
    line: list[tuple[str, int]] = []
    left_last: str | None = None
    for number, (client, prompt, produced) in enumerate(events):
        if rng.random() < 0.6 or not line:
            if client not in [c for c, _ in line]:
                floor = min((counter[c] for c, _ in line), default=counter.get(left_last, 0.0) if left_last else 0.0)
                counter[client] = max(counter.get(client, 0.0), floor)
            line.append((client, prompt))
            queue.push(waiting(f"r{number}", prompt, slo_class=client, arrived=float(number)))
        else:
            least = min(counter[c] for c, _ in line)
            chosen = next(item for item in line if counter[item[0]] == least)
            line.remove(chosen)
            if chosen[0] not in [c for c, _ in line]:
                left_last = chosen[0]
            counter[chosen[0]] += PROMPT_WEIGHT * chosen[1] + OUTPUT_WEIGHT * produced
            assert serve(queue, chosen[1], produced) == chosen[0]
        assert queue.counters == counter and len(queue) == len(line) == len(list(queue))


def flood(made: Scheduler, steps: int) -> dict[str | None, float]:
    """Client a sends long requests in masses before b sends short ones; returns each client's weighted service meanwhile."""
    made.admit([request(f"a{i}", 12, output=20, stem=i, slo_class="a", arrived=i / 1e3) for i in range(60)], 0.0)
    made.admit([request(f"b{i}", 6, output=8, stem=99 + i, slo_class="b", arrived=1 + i / 1e3) for i in range(200)], 0.0)
    service: dict[str | None, float] = {"a": 0.0, "b": 0.0}
    for now in range(steps):
        plan, progress = step(made, float(now))
        for placement in plan.placed:
            service[made_class(placement.prompt_length)] += PROMPT_WEIGHT * placement.prompt_length
        for item in progress:
            service[item.state.request.slo_class] += OUTPUT_WEIGHT * len(item.tokens)
    return service


def made_class(prompt: int) -> str:
    return "a" if prompt == 12 else "b"


def test_two_busy_clients_get_the_same_service() -> None:
    """The paper's bound on the difference: 2 max(w_p x longest prompt, w_q x tokens of a full batch). First come is not fair."""
    slots = 4
    most_in_batch = slots * (12 + 20)
    fair = flood(scheduler("vtc", pages=400, slots=slots), 400)
    assert abs(fair["a"] - fair["b"]) <= 2 * max(PROMPT_WEIGHT * 12, OUTPUT_WEIGHT * most_in_batch)
    assert min(fair.values()) > 1500, "both were busy for long"
    unfair = flood(scheduler("continuous", pages=400, slots=slots), 250)
    assert unfair["b"] == 0


def test_idleness_earns_nothing() -> None:
    """A client that comes back is lifted to those who wait: it does not get all the service that it did not ask for."""
    queue = FairQueue()
    for number in range(10):
        queue.push(waiting(f"a{number}", 10, slo_class="a", arrived=float(number)))
    for _ in range(5):
        serve(queue, 10, 20)
    queue.push(waiting("b", 10, slo_class="b", arrived=50.0))
    assert queue.counters["b"] == queue.counters["a"] == 5 * (10 + 2 * 20)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=20))
def test_one_client_is_served_in_order_of_arrival(clients: list[str | None]) -> None:
    queue = FairQueue()
    states = [waiting(f"r{i}", 5, slo_class=client, arrived=float(i)) for i, client in enumerate(clients)]
    for state in states:
        queue.push(state)
    admitted = []
    while (state := queue.first(0.0)) is not None:
        queue.take(state)
        admitted.append(state)
    for client in {"a", "b", None}:
        mine = [s.request.id for s in admitted if s.request.slo_class == client]
        assert mine == [s.request.id for s in states if s.request.slo_class == client]


def test_who_was_pre_empted_is_not_charged_twice() -> None:
    queue = FairQueue()
    state = waiting("a", 10, slo_class="a")
    queue.push(state)
    queue.take(state)
    state.preemptions = 1
    queue.put_back(state)
    queue.take(state)
    assert queue.counters == {"a": 10.0}
