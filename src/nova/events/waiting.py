"""Waiting for a job to end: woken by notification, with a look at the row as the net."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from nova.store.listen import Channel


class Notifications(Protocol):
    def on(self, channel: str, callback: Callable[[str], None], /) -> object: ...


class Endings:
    """Tells in this process which jobs have ended, as far as somebody waits for them."""

    def __init__(self, notifications: Notifications) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        notifications.on(Channel.ASYNC, self._ended)

    @contextmanager
    def of(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when the job ends, from now on."""
        event = asyncio.Event()
        self._waiting[job_id].add(event)
        try:
            yield event
        finally:
            waiting = self._waiting[job_id]
            waiting.discard(event)
            if not waiting:
                del self._waiting[job_id]

    def _ended(self, payload: str) -> None:
        if self._waiting:
            for job_id in payload.split(","):
                for event in self._waiting.get(job_id, ()):
                    event.set()
