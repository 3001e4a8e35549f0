"""A process's own copy of rows that every request needs, kept fresh by notifications."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from nova.errors import NovaError
from nova.service import Background
from nova.store.listen import Listener

log = structlog.get_logger(__name__)
_BLIND_POLL_S = 1.0
"""How often everything is read again while notifications may be missed, or after a read that failed."""

Refresh = Callable[[frozenset[str] | None], Awaitable[None]]


class Mirror:
    """Calls ``refresh`` with the payloads that were notified, or with None for everything.

    Everything is read at start, after the listener was disconnected, and every second while it is. One refresh runs at a
    time, so an older read never overwrites a newer one.
    """

    def __init__(self, name: str, listener: Listener, channel: str, refresh: Refresh) -> None:
        self._name = name
        self._listener = listener
        self._refresh = refresh
        self._changed: set[str] = set()
        self._everything = False
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()
        self._background = Background(name)
        listener.on(channel, self._notified)
        listener.on_reconnect(self._reconnected)

    async def start(self) -> None:
        """Read everything once; raises what the read raises."""
        await self._run(None)
        self._background.spawn("refresh", self._follow())

    async def close(self) -> None:
        await self._background.close()

    async def changed(self, payload: str) -> None:
        """Refresh now: for whoever made a change and must see it in the next request."""
        await self._run(frozenset({payload}))

    def _notified(self, payload: str) -> None:
        self._changed.add(payload)
        self._wake.set()

    def _reconnected(self) -> None:
        self._everything = True
        self._wake.set()

    async def _run(self, what: frozenset[str] | None) -> None:
        async with self._lock:
            await self._refresh(what)

    async def _follow(self) -> None:
        while True:
            patience = None if self._listener.connected and not self._everything else _BLIND_POLL_S
            try:
                await asyncio.wait_for(self._wake.wait(), patience)
            except TimeoutError:
                self._everything = True
            self._wake.clear()
            what = None if self._everything else frozenset(self._changed)
            self._changed.clear()
            self._everything = False
            if what is not None and not what:
                continue
            try:
                await self._run(what)
            except NovaError as exc:
                log.warning("copy could not be refreshed", copy=self._name, error=exc.detail)
                self._everything = True
