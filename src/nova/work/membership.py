"""This process as the cluster knows it: its row in ``cluster_nodes``, renewed while it lives and removed when it ends."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
import structlog

from nova.domain.node import RENEW_S, NodeState
from nova.errors import NovaError
from nova.ids import new_id
from nova.service import Background
from nova.store.listen import Channel
from nova.store.nodes import NodeRecord, NodeStore
from nova.work.runner import Notifications

log = structlog.get_logger(__name__)
FORGET_S = 3600.0
"""Rows of processes that are gone are kept so long, for whoever asks what became of them."""
_SWEEP_EVERY = 12
"""renewals"""
_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses of the documentation ranges: the route to them is the route to any other host. Nothing is sent."""


class Membership:
    """Registers on start and removes the row on close.

    ``load`` is asked at each renewal for what others may want to know; ``changed`` hears the state that an operator gave this
    process (active, cordoned, draining) whenever it is another one than before.
    """

    def __init__(
        self,
        store: NodeStore,
        notifications: Notifications,
        *,
        plane: str,
        name: str,
        address: str,
        info: Mapping[str, Any],
        labels: Mapping[str, str] | None = None,
        load: Callable[[], Mapping[str, Any]] = dict,
        changed: Callable[[NodeState], None] = lambda _state: None,
        node_id: str | None = None,
    ) -> None:
        self.id = node_id or new_id()
        self.plane = plane
        self.name = name
        self.address = address
        self.state: NodeState = "active"
        self.labels = dict(labels or {})
        self._store = store
        self._notifications = notifications
        self._info = dict(info)
        self._load = load
        self._changed = changed
        self._told = False
        """``info`` is newer than the row"""
        self._wake = asyncio.Event()
        self._tasks = Background("membership")

    async def start(self) -> None:
        """Raises NovaError (``dependency_unavailable``)."""
        await self._register()
        self._notifications.on(Channel.NODES, self._on_notify)
        self._notifications.on_reconnect(self._wake.set)
        self._tasks.spawn("renew", self._run())

    def tell(self, info: Mapping[str, Any]) -> None:
        """Add to what the row says of this process, soon."""
        self._info |= info
        self._told = True
        self._wake.set()

    async def close(self) -> None:
        await self._tasks.close()
        try:
            await self._store.remove(self.id)
        except (NovaError, psycopg.Error) as error:
            log.warning("cannot take this process off the list; its lease will run out", error=str(error).strip())

    def _on_notify(self, node_id: str) -> None:
        if node_id == self.id:
            self._wake.set()

    async def _register(self) -> None:
        self._read_back(
            await self._store.register(
                self.id,
                self.plane,
                self.name,
                self.address,
                info=self._info,
                load=self._load(),
                labels=self.labels,
            )
        )

    async def _run(self) -> None:
        renewals = 0
        while True:
            await _wait(self._wake, RENEW_S)
            self._wake.clear()
            renewals += 1
            try:
                record = None if self._told else await self._store.renew(self.id, self._load())
                if record is None:
                    self._told = False
                    await self._register()
                else:
                    self._read_back(record)
                if renewals % _SWEEP_EVERY == 0:
                    await self._store.forget_gone(FORGET_S)
            except (NovaError, psycopg.Error) as error:
                log.warning("cannot renew the row of this process", error=str(error).strip())

    def _read_back(self, record: NodeRecord) -> None:
        self.labels = record.labels
        if record.state != self.state:
            log.info("state of this node", state=record.state)
            self.state = record.state
            self._changed(record.state)


def advertised(configured: str, host: str, port: int) -> str:
    """host:port under which others reach a socket that listens on ``host``: ``configured`` if set, else that address; of a
    wildcard, the address of the interface that leads to other hosts."""
    if configured:
        return configured
    if host in ("", "0.0.0.0", "::"):
        host = _interface(socket.AF_INET6 if host == "::" else socket.AF_INET)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def node_name(configured: str) -> str:
    """``cluster.node_id``, else the host's name."""
    return configured or socket.gethostname()


def _interface(family: socket.AddressFamily) -> str:
    families = (family, socket.AF_INET) if family == socket.AF_INET6 else (family,)
    for each in families:
        with socket.socket(each, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((_ELSEWHERE[each], 9))
            except OSError:
                continue
            found = str(probe.getsockname()[0])
            if not ipaddress.ip_address(found).is_unspecified:
                return found
    return "127.0.0.1"  # no route to anywhere: the cluster can only be this host


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
