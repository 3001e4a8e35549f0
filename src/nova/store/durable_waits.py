"""Waiting for durable executions to end: woken by notification, with a look at the row as the net."""

import asyncio
from collections import defaultdict
from typing import Final

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.durable import Execution
from nova.domain.identity import Scope
from nova.store.durable import DurableStore
from nova.store.listen import Channel, Listener

_LOOK_S: Final = 2.0
"""Whoever waits looks at the row this often, should a notification be lost."""


class DurableWaits:
    def __init__(self, store: DurableStore, listener: Listener, clock: Clock = SYSTEM_CLOCK) -> None:
        self._store = store
        self._clock = clock
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        listener.on(Channel.DURABLE, self._ended)

    async def end(self, scope: Scope, execution_id: str, until: float) -> Execution:
        """The execution when it has ended, or as it is then (monotonic). Raises ``not_found``."""
        event = asyncio.Event()
        self._waiting[execution_id].add(event)
        try:
            while True:
                left = until - self._clock.monotonic()
                if left > 0:
                    await _set(event, min(left, _LOOK_S))
                    event.clear()
                execution = await self._store.get(scope, execution_id)
                if execution.ended_at is not None or self._clock.monotonic() >= until:
                    return execution
        finally:
            waiting = self._waiting[execution_id]
            waiting.discard(event)
            if not waiting:
                del self._waiting[execution_id]

    def _ended(self, execution_id: str) -> None:
        for event in self._waiting.get(execution_id, ()):
            event.set()


async def _set(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
