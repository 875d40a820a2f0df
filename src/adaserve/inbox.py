"""The inbox: where other threads leave requests and cancellations for the engine."""

import threading
from dataclasses import dataclass

from adaserve.request import Request


@dataclass(frozen=True)
class Mail:
    """What came in since the last step."""

    requests: tuple[Request, ...]
    cancelled: frozenset[str]


NO_MAIL = Mail((), frozenset())


class Inbox:
    """Holds mail until the engine takes it; all but `take` may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requests: list[Request] = []
        self._cancelled: set[str] = set()

    def add(self, request: Request) -> None:
        """Leave a request; thread-safe."""
        with self._changed:
            self._requests.append(request)
            self._changed.notify()

    def cancel(self, request_id: str) -> None:
        """Leave a cancellation; thread-safe. One that overtakes nothing and names nobody has no effect."""
        with self._changed:
            self._cancelled.add(request_id)
            self._changed.notify()

    def take(self) -> Mail:
        """Empty the box."""
        if not self._requests and not self._cancelled:  # most steps; what comes in this moment comes to the next one
            return NO_MAIL
        with self._changed:
            mail = Mail(tuple(self._requests), frozenset(self._cancelled))
            self._requests.clear()
            self._cancelled.clear()
            return mail

    def wait(self, timeout: float) -> bool:
        """Return once there is mail, or after `timeout` seconds; whether there is any."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._requests or self._cancelled), timeout)
