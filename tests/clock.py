"""A clock that only tests move, in place of the module `time`."""

from __future__ import annotations

from collections.abc import Callable


class FakeClock:
    """Seconds pass by `sleep` alone: give it to a module as its `time`."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now
        self._events: list[tuple[float, Callable[[], object]]] = []

    def monotonic(self) -> float:
        """The time now, seconds."""
        return self.now

    perf_counter = time = monotonic

    def sleep(self, seconds: float) -> None:
        """Let time pass; what was planned for it happens."""
        self.now += seconds
        due = [event for event in self._events if event[0] <= self.now]
        self._events = [event for event in self._events if event[0] > self.now]
        for _, action in due:
            action()

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Plan an action."""
        self._events.append((self.now + seconds, action))
