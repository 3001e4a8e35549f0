"""After a change: pools of versions that no call without a number can reach any more are drained.

Where calls would be held up by it, the new version gets ready first (a *handover*): calls stay on instances of the version
before until the new one has as many as were at work, at most :data:`HANDOVER_S`. A function that is hardly called has
no handover: its next call runs the new version, at the price of a cold start.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.call import CallRequest
from nova.domain.function import FunctionSnapshot
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.execution.catalog import Catalog, Entry
from nova.execution.fleet import InstanceFleet
from nova.execution.pool import Pool
from nova.execution.slots import State
from nova.service import Background

log = structlog.get_logger(__name__)
HANDOVER_S = 10.0
"""So long a new version may take to get ready; then calls wait for it."""
_LOOK_S = 0.005
_RECENT_S = 1.0
"""An instance that was used within this is at work."""
_AGAIN_S = 1.0
_WORTH_IT = 0.5
"""Calls that may be expected within one boot."""
_Name = tuple[Scope, str]


class SteadyCatalog(Catalog):
    """A catalog that leaves calls with the version before for the time of a handover."""

    steer: Callable[[CallRequest, FunctionSnapshot], FunctionSnapshot] | None = None

    def peek(self, call: CallRequest) -> FunctionSnapshot | None:
        snapshot = super().peek(call)
        if self.steer is None or snapshot is None:
            return snapshot
        return self.steer(call, snapshot)

    async def resolve(self, call: CallRequest, deadline: float | None = None) -> FunctionSnapshot:
        snapshot = await super().resolve(call, deadline)
        return snapshot if self.steer is None else self.steer(call, snapshot)

    def cached(self, scope: Scope, function: str) -> Entry | None:
        """What memory has of a function."""
        return self._entries.get((scope.tenant, scope.namespace, function))


@dataclass(frozen=True, slots=True)
class Handover:
    """``old`` serves what is meant for ``new`` until that has ``wanted`` instances, or ``until`` (monotonic)."""

    old: Pool
    new: Pool
    wanted: int
    until: float

    def over(self, now: float) -> bool:
        """Failed boots end it as well: callers are to be told."""
        new = self.new
        ready = new.serving - new.booting
        given_up = new.failure is not None and not new.booting
        return ready >= self.wanted or given_up or now >= self.until or new.draining or not self.old.members

    def leads(self) -> Pool:
        """Where the next call goes: to a free slot, the new version's first."""
        if self.new.available or self.old.draining or not self.old.members:
            return self.new
        return self.old if self.old.available or len(self.old.members) > len(self.new.members) else self.new


class Rollover:
    """Listens to the catalog and tells the fleet which pools to keep. Calls in flight finish; waiters move over."""

    def __init__(self, catalog: Catalog, fleet: InstanceFleet, clock: Clock = SYSTEM_CLOCK) -> None:
        self._catalog = catalog
        self._steady = catalog if isinstance(catalog, SteadyCatalog) else None
        self._fleet = fleet
        self._clock = clock
        self._changed: set[_Name] = set()
        """functions whose stale pools are still to be drained"""
        self._undecided: set[_Name] = set()
        """those of which it is not known yet whether there is a handover"""
        self._handovers: dict[_Name, Handover] = {}
        self._wake = asyncio.Event()
        self._tasks = Background("rollover")
        catalog.on_change(self._on_change)

    async def start(self) -> None:
        self._tasks.spawn("drain", self._run())

    async def close(self) -> None:
        await self._tasks.close()

    def _on_change(self, scope: Scope, function: str) -> None:
        if self._fleet.has_pools(scope, function):
            self._changed.add((scope, function))
            self._undecided.add((scope, function))
            self._wake.set()
            self._look_on()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for name in list(self._changed):
                try:
                    await self._drain_stale(name)
                except NovaError as exc:
                    log.warning("old instances cannot be drained yet", function=name[1], cause=exc.code)
                    self._wake.set()
                    await self._clock.sleep(_AGAIN_S)

    async def _drain_stale(self, name: _Name) -> None:
        self._changed.discard(name)
        try:
            entry = await self._catalog.entry(*name)
        except NovaError:
            self._changed.add(name)
            raise
        if name in self._undecided:
            self._decide(name, entry)
        keep = _keys(entry)
        if (handover := self._handovers.get(name)) is not None:
            keep.add(handover.old.key)
        if drained := self._fleet.evict(*name, keep):
            log.info("old instances drain", function=name[1], pools=drained)

    # Handovers

    def _look_on(self) -> None:
        """Steer calls only while there is a reason to."""
        if self._steady is not None:
            self._steady.steer = self._steer if self._undecided or self._handovers else None

    def _steer(self, call: CallRequest, snapshot: FunctionSnapshot) -> FunctionSnapshot:
        """Which version this call really runs; what it names by number it gets."""
        name = call.scope, call.function
        if name in self._undecided and self._steady is not None:
            entry = self._steady.cached(*name)
            if entry is not None:
                self._decide(name, entry)
        handover = self._handovers.get(name)
        if handover is None or snapshot.pool_key != handover.new.key or call.trigger == "shadow":
            return snapshot
        if call.qualifier is not None and call.qualifier.isdigit():
            return snapshot
        pool = handover.leads()
        return snapshot if pool is handover.new else pool.snapshot

    def _decide(self, name: _Name, entry: Entry | None) -> None:
        """Is it worth a handover? Only if calls would have to wait for a boot, at the rate at which they came so far."""
        self._undecided.discard(name)
        before = self._handovers.pop(name, None)
        if before is not None:
            before.old.fading = False
        if self._steady is not None and entry is not None and entry.live is not None:
            now = self._clock.monotonic()
            stale = [pool for pool in self._fleet.stale(*name, _keys(entry)) if pool.members]
            old = max(stale, key=lambda pool: pool.rate(now), default=None)
            new = self._fleet.pool(entry.live)
            # every pool's: one change may follow another before its calls have moved over
            rate = sum(pool.rate(now) for pool in stale)
            if old is not None and not new.members and rate * old.boot_s >= _WORTH_IT:
                self._begin(name, old, new, now)
        self._look_on()

    def _begin(self, name: _Name, old: Pool, new: Pool, now: float) -> None:
        busy = [member for member in old.members.values() if member.inflight or now - member.last_used < _RECENT_S]
        slots = sum(member.concurrency for member in busy)
        most = new.snapshot.max_replicas
        wanted = max(1, math.ceil(slots / new.snapshot.concurrency))
        handover = Handover(old, new, min(wanted, most) if most else wanted, now + HANDOVER_S)
        self._handovers[name] = handover
        old.fading = True
        new.prewarm(handover.wanted, handover.until)
        self._tasks.spawn("handover", self._accompany(name, handover))

    async def _accompany(self, name: _Name, handover: Handover) -> None:
        """Until the new version is ready; then the old one drains."""
        while self._handovers.get(name) is handover and not handover.over(self._clock.monotonic()):
            handover.new.plan()  # the room on the node may have changed
            await self._clock.sleep(_LOOK_S)
        if self._handovers.get(name) is not handover:
            return  # another change came
        del self._handovers[name]
        self._look_on()
        handover.new.prewarm(0, 0.0)
        handover.new.succeed(handover.old)
        ready = sum(member.state is State.READY for member in handover.new.members.values())
        log.info("a new version took over", function=name[1], version=handover.new.snapshot.version, instances=ready)
        if name not in self._changed:
            entry = self._steady.cached(*name) if self._steady is not None else None
            self._fleet.evict(*name, _keys(entry) | {handover.new.key})


def _keys(entry: Entry | None) -> set[str]:
    return {snapshot.pool_key for snapshot in entry.snapshots.values()} if entry is not None else set()
