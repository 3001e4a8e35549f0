"""Deadlines of calls in flight: one timer per event loop, none per call."""

import asyncio
import time
from typing import Protocol


class Timed(Protocol):
    """Something in flight; hashable. ``deadline`` is monotonic seconds."""

    deadline: float

    def expire(self) -> None:
        """The deadline has passed."""
        ...


class Deadlines:
    """Expires what is in flight when its time comes.

    Adding and removing are set operations. The timer stands at the earliest deadline that was known when it was set, so
    with calls that end in time it fires about once per timeout, not once per call.
    """

    def __init__(self) -> None:
        self._flying: set[Timed] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._at = float("inf")

    def add(self, item: Timed) -> None:
        self._flying.add(item)
        if item.deadline < self._at:
            self._arm(item.deadline)

    def discard(self, item: Timed) -> None:
        self._flying.discard(item)

    def close(self) -> None:
        self._flying.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._at = float("inf")

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - time.monotonic()), self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        self._at = float("inf")
        now = time.monotonic()
        for item in [item for item in self._flying if item.deadline <= now]:
            self._flying.discard(item)
            item.expire()
        if self._flying:
            earliest = min(item.deadline for item in self._flying)
            if earliest < self._at:
                self._arm(earliest)
