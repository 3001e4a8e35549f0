"""One process in charge of each duty: leases in PostgreSQL, with a fencing token for what a former leader still writes.

A :class:`Duty` runs its work in whichever process holds the lease of its name; every other process stands by. A leader
renews each second. One whose renewals fail stops before the lease can have run out; one that was stopped itself (SIGSTOP, a
suspended machine) finds on waking that its fence is no longer good. Wall clocks play no part: the lease's times are the
database's, and a leader measures its own patience on a clock that never jumps.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

import psycopg
import structlog

from nova.clock import BootClock, Clock
from nova.ids import new_id
from nova.service import Background
from nova.store.db import Connection
from nova.store.leases import LeaseSession, hold
from nova.store.listen import Channel
from nova.work.queue import LeaseLost
from nova.work.runner import Notifications

__all__ = ["Duty", "Fence", "Lead", "LeaseLost", "Leases"]

log = structlog.get_logger(__name__)
T = TypeVar("T")
_AWAY = (psycopg.Error, OSError, TimeoutError)
LEASE_S = 3.0
RENEW_S = 1.0
AGAIN_S = 0.2
"""After a renewal that failed: the server may be back in a moment, and the lease is running out."""
MARGIN_S = 0.5
"""A leader that could not renew stops this long before its lease ends: stopping takes time too."""
STAND_BACK_S = 1.5
"""Whoever failed at a duty leaves it to others for this long: they look for free duties each second."""
CLOSE_S = 5.0
"""Work that has not ended so long after its cancellation is left behind at shutdown, with its lease."""


class Fence:
    """The proof of being in charge, for one term: it never becomes good again once it was lost."""

    def __init__(self, duty: str, owner: str, number: int, clock: Clock, ends: float) -> None:
        self.duty = duty
        self.owner = owner
        self.number = number
        """grows with every change of hands"""
        self.ends = ends
        """monotonic time at which the work must have stopped unless a renewal comes first"""
        self._clock = clock

    @property
    def held(self) -> bool:
        """False as soon as the lease may be somebody else's. Ask it before anything that :meth:`check` cannot cover."""
        return self._clock.monotonic() < self.ends

    async def check(self, conn: Connection) -> None:
        """First statement of every transaction in which a leader writes: it commits only while the duty is still ours.

        Raises :class:`LeaseLost`; roll back. Holds the duty until the transaction ends, so keep it short: one that says
        nothing for as long as a lease lasts is ended by the server.
        """
        if not self.held or not await hold(conn, self.duty, self.owner, self.number, idle_s=LEASE_S):
            self.lose()
            raise LeaseLost(self.duty)

    def lose(self) -> None:
        self.ends = float("-inf")


Lead = Callable[[Fence], Awaitable[None]]
"""The work of a duty: runs until it is cancelled. When it returns or raises, the duty is left to others for a moment."""


class Leases:
    """The leases of one process, renewed on one connection. Start it before the duties and close it after them."""

    def __init__(
        self, dsn: str, notifications: Notifications, *, node: str, clock: Clock | None = None, owner: str | None = None
    ) -> None:
        self.owner = owner or new_id()
        self.clock = clock or BootClock()
        self._session = LeaseSession(dsn, self.owner, node)
        self._turn = asyncio.Lock()
        """one statement at a time on the one connection"""
        self._notifications = notifications
        self._duties: dict[str, Duty] = {}
        self._wake = asyncio.Event()
        self._away = False
        self._tasks = Background("leases")

    async def start(self) -> None:
        self._notifications.on(Channel.LEASES, self._on_notify)
        self._notifications.on_reconnect(self._wake.set)
        self._tasks.spawn("renew", self._run())

    async def close(self) -> None:
        await self._tasks.close()
        await self._session.close()

    def leading(self) -> dict[str, bool]:
        """Of each duty of this process: is it in charge? (the series ``leader``)"""
        return {name: duty.leading for name, duty in self._duties.items()}

    def add(self, duty: "Duty") -> None:
        """Let a duty stand by. Raises ValueError for a second one of the same name."""
        if duty.name in self._duties:
            raise ValueError(f"two duties are called {duty.name!r}")
        self._duties[duty.name] = duty
        self._wake.set()

    def remove(self, duty: "Duty") -> None:
        self._duties.pop(duty.name, None)

    async def release(self, fence: Fence) -> None:
        """Give a lease back while it is held; one that may be somebody else's by now is left alone."""
        if not fence.held:
            return
        fence.lose()
        try:
            await self._on_connection(self._session.release(fence.duty, fence.number))
        except _AWAY as error:
            log.warning("cannot release a lease; it will run out", duty=fence.duty, error=str(error).strip())

    def _on_notify(self, duty: str) -> None:
        if duty in self._duties:
            self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._renew()
                await self._claim()
            except _AWAY as error:
                if not self._away:
                    log.warning("cannot renew leases", error=str(error).strip())
                self._away = True
            else:
                self._away = False
            await _wait(self._wake, AGAIN_S if self._away else RENEW_S)

    async def _renew(self) -> None:
        held = {}
        for name, duty in self._duties.items():
            if duty.fence is not None and duty.fence.held:
                held[name] = duty.fence
            else:
                duty.stop()
        if not held:
            return
        ends = self._ends()
        numbers = {name: fence.number for name, fence in held.items()}
        ours = await self._on_connection(self._session.renew(numbers, LEASE_S))
        for name, fence in held.items():
            if name not in ours:
                fence.lose()
                self._duties[name].stop()
            elif fence.held:  # one that ran out before the answer came stays lost: its work is being stopped
                fence.ends = ends

    async def _claim(self) -> None:
        wanted = [name for name, duty in self._duties.items() if duty.stands_by]
        if not wanted:
            return
        ends = self._ends()
        for name, number in (await self._on_connection(self._session.claim(wanted, LEASE_S))).items():
            fence = Fence(name, self.owner, number, self.clock, ends)
            duty = self._duties.get(name)
            if duty is not None and duty.stands_by:
                duty.begin(fence)
            else:
                await self.release(fence)

    def _ends(self) -> float:
        """Until when a lease that is written from now on may be relied on."""
        return self.clock.monotonic() + LEASE_S - MARGIN_S

    async def _on_connection(self, work: Coroutine[None, None, T]) -> T:
        try:
            async with asyncio.timeout(RENEW_S), self._turn:
                try:
                    return await work
                except BaseException:
                    await self._session.close()
                    raise
        finally:
            work.close()


class Duty:
    """Runs ``lead`` while this process is in charge of the duty ``name``, of all processes that start a duty of that name."""

    def __init__(self, name: str, lead: Lead, leases: Leases) -> None:
        self.name = name
        self.fence: Fence | None = None
        self._lead = lead
        self._leases = leases
        self._work: asyncio.Task[None] | None = None
        self._term: asyncio.Task[None] | None = None
        self._not_before = float("-inf")
        self._closing = False
        self._tasks = Background(f"duty.{name}")

    async def start(self) -> None:
        self._leases.add(self)

    async def close(self) -> None:
        """Stop the work, then let another process have the duty at once."""
        self._closing = True
        self.stop()
        if self._term is not None:
            await asyncio.wait({self._term}, timeout=CLOSE_S)
        self._leases.remove(self)
        await self._tasks.close()

    @property
    def leading(self) -> bool:
        return self.fence is not None and self.fence.held

    @property
    def stands_by(self) -> bool:
        """Ready to be put in charge: nothing of an earlier term still runs."""
        return self._term is None and not self._closing and self._leases.clock.monotonic() >= self._not_before

    def begin(self, fence: Fence) -> None:
        self.fence = fence
        self._term = self._tasks.spawn("term", self._serve(fence))

    def stop(self) -> None:
        """Cancel the work; the lease is given back when it has ended."""
        if self._work is not None:
            _cancel_once(self._work)

    async def _serve(self, fence: Fence) -> None:
        """One term, from the claim to the end of the work."""
        log.info("takes charge", duty=self.name, fence=fence.number)
        work = self._work = asyncio.create_task(_run(self._lead, fence), name=f"duty.{self.name}")
        try:
            while not work.done() and fence.held:
                await asyncio.wait({work}, timeout=max(0.0, fence.ends - self._leases.clock.monotonic()))
            _cancel_once(work)
            await asyncio.wait({work})
        finally:
            _cancel_once(work)
            self._work = self._term = self.fence = None
        self._say_why(work, fence)
        self._not_before = self._leases.clock.monotonic() + STAND_BACK_S
        await self._leases.release(fence)

    def _say_why(self, work: asyncio.Task[None], fence: Fence) -> None:
        if self._closing:
            return
        error = None if work.cancelled() else work.exception()
        if not fence.held or isinstance(error, LeaseLost):
            log.warning("is no longer in charge", duty=self.name, fence=fence.number)
        elif error is not None:
            log.error("a duty failed", duty=self.name, exc_info=error)
        else:
            log.info("a duty has ended", duty=self.name)


async def _run(lead: Lead, fence: Fence) -> None:
    await lead(fence)


def _cancel_once(work: asyncio.Task[None]) -> None:
    """A second cancellation would break into the work's own clearing up."""
    if not work.cancelling():
        work.cancel()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
