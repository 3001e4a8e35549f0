"""Waiting for a run to change: woken by notification, with a look at the row as the net."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from nova.store.listen import Channel


class Notifications(Protocol):
    def on(self, channel: str, callback: Callable[[str], None], /) -> object: ...


class RunChanges:
    """Tells in this process which runs have changed, as far as somebody looks at them."""

    def __init__(self, notifications: Notifications) -> None:
        self._watched: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        notifications.on(Channel.RUNS, self._changed)

    @contextmanager
    def of(self, run_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when the run changes, from now on."""
        event = asyncio.Event()
        self._watched[run_id].add(event)
        try:
            yield event
        finally:
            watching = self._watched[run_id]
            watching.discard(event)
            if not watching:
                del self._watched[run_id]

    def _changed(self, payload: str) -> None:
        if self._watched:
            for event in self._watched.get(json.loads(payload).get("run", ""), ()):
                event.set()


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Until the event is set, at most so long; clears it."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    event.clear()
