"""Which comets there are and which of them take calls: discovery, their Heartbeats, and who is left out for now.

One that is silent for :data:`~nova.domain.node.SILENT_S` gets nothing until it speaks again; one that an operator cordons or
drains gets nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Literal, Protocol

import psycopg
import structlog
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential, wait_random

from nova.clock import Clock
from nova.domain.call import Accepted, AsyncOptions, CallRequest, CallResult
from nova.domain.identity import Scope
from nova.domain.node import RENEW_S, SILENT_S, NodeReport
from nova.domain.ports import Warmth
from nova.domain.stream import Sink
from nova.errors import NovaError
from nova.rpc.failures import unreachable
from nova.rpc.placement import Place, Placement
from nova.service import Background
from nova.store.listen import Channel
from nova.store.nodes import NodeStore
from nova.work.runner import Notifications

log = structlog.get_logger(__name__)
Standing = Literal["ok", "degraded", "down"]
RETIRE_S = 960.0
"""Calls on a comet that has left the list may take so long to end before its connection is closed."""


class Connection(Protocol):
    """What is needed of :class:`nova.rpc.remote.CometConnection`."""

    async def start(self) -> None: ...
    async def close(self) -> None: ...
    async def invoke(self, call: CallRequest) -> CallResult: ...
    async def stream(self, call: CallRequest, sink: Sink) -> CallResult: ...
    async def accept(self, call: CallRequest, options: AsyncOptions) -> Accepted: ...
    async def scale(self, scope: Scope, function: str, replicas: int, *, ttl_s: float) -> int: ...
    async def prewarm(
        self, scope: Scope, function: str, replicas: int, *, qualifier: str | None, ttl_s: float
    ) -> Warmth: ...
    async def evict(self, scope: Scope, function: str) -> int: ...
    async def proxy(self, scope: AsgiScope, receive: Receive, send: Send) -> None: ...
    def reports(self) -> AsyncIterator[NodeReport]: ...


class Comet(Place):
    """A place with the connection to it, and why it may be left out."""

    __slots__ = ("connection", "ejections", "failures", "leaving", "out_until", "speaks", "streams", "task", "timer")

    def __init__(self, address: str, connection: Connection) -> None:
        super().__init__(address)
        self.connection = connection
        self.speaks = False
        """its Heartbeat is there and not silent"""
        self.out_until = float("-inf")
        self.failures = 0
        self.ejections = 0
        self.streams = 0
        """requests that are being proxied"""
        self.leaving = False
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None


class Roster:
    """The comets of :class:`nova.rpc.comets.Comets`. A service."""

    def __init__(
        self,
        connect: Callable[[str], Connection],
        addresses: Sequence[str],
        nodes: NodeStore | None,
        notifications: Notifications | None,
        *,
        name: str,
        zone: str,
        clock: Clock,
        placement: Placement[Comet] | None = None,
    ) -> None:
        self.placement: Placement[Comet] = placement or Placement()
        self._change: asyncio.Future[None] | None = None
        self._connect = connect
        self._static = tuple(dict.fromkeys(addresses))
        self._nodes = nodes
        self._notifications = notifications
        self._name = name
        self._zone = zone
        self._clock = clock
        self._comets: dict[str, Comet] = {}
        self._look = asyncio.Event()
        self._tasks = Background("comets")

    async def start(self) -> None:
        for address in self._static:
            await self._add(address)
        if not self._static and self._nodes is not None:
            if self._notifications is not None:
                self._notifications.on(Channel.NODES, lambda _id: self._look.set())
                self._notifications.on_reconnect(self._look.set)
            self._tasks.spawn("discover", self._discover(self._nodes))

    async def close(self) -> None:
        for comet in self._comets.values():
            comet.leaving = True
        await self._tasks.close()
        for comet in list(self._comets.values()):
            await self._drop(comet)

    def __iter__(self) -> Iterator[Comet]:
        return iter(self._comets.values())

    def standing(self) -> Standing:
        """down: nobody takes calls. degraded: somebody does not, though no operator took him out."""
        usable = self.placement.usable
        if not usable:
            return "down"
        meant = [comet for comet in self if comet.report is None or comet.report.state == "active"]
        return "ok" if all(comet in usable for comet in meant) else "degraded"

    def leave_out(self, comet: Comet, seconds: float) -> None:
        comet.out_until = self._clock.monotonic() + seconds
        asyncio.get_running_loop().call_later(seconds, self._refresh)
        self._refresh()

    def _refresh(self) -> None:
        """Who gets calls from now on."""
        now = self._clock.monotonic()
        self.placement.use(
            comet
            for comet in self
            if comet.speaks
            and not comet.leaving
            and comet.out_until <= now
            and comet.report is not None
            and comet.report.state == "active"
        )
        change, self._change = self._change, None
        if change is not None and not change.done():
            change.set_result(None)

    async def change(self) -> None:
        """Wait until who takes calls may have changed."""
        if self._change is None:
            self._change = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._change)

    # Listening

    async def _listen(self, comet: Comet) -> None:
        """Follow a comet's reports for ever, on one stream after the other."""
        while True:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(NovaError),
                wait=wait_exponential(multiplier=0.05, max=1) + wait_random(0, 0.05),
            ):
                with attempt:
                    await self._follow(comet)

    async def _follow(self, comet: Comet) -> None:
        """One stream, to its end. Raises NovaError when it brought nothing."""
        heard = False
        try:
            async for report in comet.connection.reports():
                if not heard:  # a process that has just come up, or is reached again: what was held against it is past
                    comet.out_until, comet.failures, comet.ejections = float("-inf"), 0, 0
                heard = True
                self._heard(comet, report)
        except NovaError:
            if not heard and not comet.leaving:
                raise
        finally:
            self._silent(comet)
        if comet.leaving:  # gRPC may lose our cancellation and raise the stream's end in its place
            raise asyncio.CancelledError
        if not heard:
            raise unreachable(comet.address)

    def _heard(self, comet: Comet, report: NodeReport) -> None:
        if not comet.speaks:
            log.info("a comet is there", address=comet.address, node=report.name)
        comet.speaks = True
        comet.update(report, name=self._name, zone=self._zone)
        if comet.timer is not None:
            comet.timer.cancel()
        comet.timer = asyncio.get_running_loop().call_later(SILENT_S / 2, self._overdue, comet)
        self._refresh()

    def _overdue(self, comet: Comet) -> None:
        comet.doubtful = True
        comet.timer = asyncio.get_running_loop().call_later(SILENT_S / 2, self._silent, comet)

    def _silent(self, comet: Comet) -> None:
        if comet.timer is not None:
            comet.timer.cancel()
            comet.timer = None
        if comet.speaks and not comet.leaving:
            log.warning("a comet fell silent", address=comet.address)
        comet.speaks = False
        self._refresh()

    # Who there is

    async def _discover(self, nodes: NodeStore) -> None:
        while True:
            self._look.clear()
            try:
                listed = {record.address for record in await nodes.alive("comet")}
            except (NovaError, psycopg.Error) as error:
                log.warning("cannot look for comets; those that are known go on", error=str(error).strip())
            else:
                for address in listed - self._comets.keys():
                    await self._add(address)
                for comet in list(self._comets.values()):
                    # one that still speaks has only lost the database
                    if comet.address not in listed and not comet.speaks and not comet.leaving:
                        comet.leaving = True
                        self._tasks.spawn(f"retire.{comet.address}", self._retire(comet))
            await _wait(self._look, RENEW_S)

    async def _add(self, address: str) -> None:
        comet = self._comets[address] = Comet(address, self._connect(address))
        await comet.connection.start()
        comet.task = self._tasks.spawn(f"listen.{address}", self._listen(comet))

    async def renew(self, address: str) -> None:
        """Whoever is known at this address has been started again: connect at once, instead of after a pause."""
        comet = self._comets.get(address)
        if comet is not None and not comet.speaks and not comet.leaving:
            await self._drop(comet)
            await self._add(address)

    async def _retire(self, comet: Comet) -> None:
        limit = self._clock.monotonic() + RETIRE_S
        while (comet.ours or comet.streams) and self._clock.monotonic() < limit:
            await self._clock.sleep(1)
        await self._drop(comet)

    async def _drop(self, comet: Comet) -> None:
        comet.leaving = True
        self._comets.pop(comet.address, None)
        if comet.task is not None:
            comet.task.cancel()
            await asyncio.wait({comet.task})
        self._silent(comet)
        await comet.connection.close()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
