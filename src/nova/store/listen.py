"""LISTEN on a connection of its own: how a change made by any process reaches this one.

Notifications are hints, never the truth: what was sent while the connection was down is lost. So whoever caches something
registers :meth:`Listener.on_reconnect` and looks again, and meanwhile may ask :attr:`Listener.connected`.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from enum import StrEnum

import psycopg
import structlog
from psycopg import sql
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential, wait_random

from nova.service import Background

log = structlog.get_logger(__name__)
_PROBE_S = 15.0
"""A silent connection is asked for a sign of life this often: a peer that vanished sends nothing."""
_PROBE_TIMEOUT_S = 5.0


class Channel(StrEnum):
    """Every channel that some part of the platform notifies on."""

    FUNCTIONS = "nova_functions"
    KEYS = "nova_keys"
    TENANTS = "nova_tenants"
    CONFIG = "nova_config"
    WORK = "nova_work"
    BUILDS = "nova_builds"
    LOGS = "nova_logs"
    ASYNC = "nova_async"
    SCHEDULES = "nova_schedules"
    NODES = "nova_nodes"
    LEASES = "nova_leases"
    TOPICS = "nova_topics"
    SUBSCRIPTIONS = "nova_subscriptions"
    RUNS = "nova_runs"
    DURABLE = "nova_durable"
    TRIGGERS = "nova_triggers"


class Listener:
    """Calls back, on the event loop, for each notification. Callbacks must be quick; one that raises is logged."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._callbacks: defaultdict[str, list[Callable[[str], None]]] = defaultdict(list)
        self._reconnected: list[Callable[[], None]] = []
        self._background = Background("listener")
        self._connected = asyncio.Event()
        self._lost_once = False

    @property
    def connected(self) -> bool:
        """False while notifications may be missed."""
        return self._connected.is_set()

    def on(self, channel: str, callback: Callable[[str], None]) -> None:
        """Call ``callback`` with the payload of each notification on a channel of :class:`Channel`; at any time."""
        self._callbacks[Channel(channel)].append(callback)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever the connection is back after a gap."""
        self._reconnected.append(callback)

    def deliver(self, channel: str, payload: str) -> None:
        """Call back as for a notification that arrived; for those that this process has just sent itself."""
        for callback in self._callbacks.get(channel, ()):
            _shielded(callback, payload)

    async def start(self) -> None:
        """Connect and listen; returns once notifications arrive. Raises psycopg's error when the server is not there."""
        conn = await self._connect()
        self._background.spawn("listen", self._run(conn))

    async def close(self) -> None:
        await self._background.close()
        self._connected.clear()

    async def _run(self, conn: psycopg.AsyncConnection) -> None:
        while True:
            try:
                await self._listen(conn)
            except (psycopg.Error, OSError, TimeoutError) as exc:
                log.warning("listener lost its connection", error=str(exc).strip())
            finally:
                self._connected.clear()
                await conn.close()
            self._lost_once = True
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type((psycopg.Error, OSError)),
                wait=wait_exponential(multiplier=0.05, max=2) + wait_random(0, 0.05),
                before_sleep=_say,
            ):
                with attempt:
                    conn = await self._connect()

    async def _connect(self) -> psycopg.AsyncConnection:
        conn = await psycopg.AsyncConnection.connect(
            self._dsn, autocommit=True, application_name="nova listener", connect_timeout=5
        )
        try:
            for channel in Channel:
                await conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        except BaseException:
            await conn.close()
            raise
        self._connected.set()
        if self._lost_once:
            for callback in self._reconnected:
                _shielded(callback)
        return conn

    async def _listen(self, conn: psycopg.AsyncConnection) -> None:
        while True:
            async for notification in conn.notifies(timeout=_PROBE_S):
                self.deliver(notification.channel, notification.payload)
            await asyncio.wait_for(conn.execute("SELECT 1"), _PROBE_TIMEOUT_S)


def _shielded(callback: Callable[..., None], *args: str) -> None:
    try:
        callback(*args)
    except Exception:
        log.exception("a listener's callback failed", callback=repr(callback))


def _say(state: RetryCallState) -> None:
    log.debug("listener tries to reconnect", attempt=state.attempt_number)
