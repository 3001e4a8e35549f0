"""The pool of one function version: free slots, the queue before them, and how many instances to boot.

Everything here is synchronous and runs on the event loop, so no lock is needed and none is held. Two invariants make the
warm path short: :attr:`Pool.available` holds exactly the ready instances with a free slot, most recently used last, and
while anybody waits it is empty, because a freed slot goes straight to the oldest waiter. The one exception is a function
whose calls are over in a moment (:mod:`nova.execution.pacing`): few at a time are done sooner than all at once.
"""

import asyncio
import math
from collections import OrderedDict
from typing import Protocol

from nova.domain.function import FunctionSnapshot
from nova.errors import NovaError
from nova.execution.channel_context import ContextEncoder
from nova.execution.pacing import UNPACED, Pace
from nova.execution.slots import BootFailure, BootTimes, Lease, Member, PoolMoved, State, Waiter

FAILURES_BEFORE_BACKOFF = 3
MAX_BACKOFF_S = 30.0
PATIENCE_S = 0.002
"""for a call that waits beside a free instance: if none ended meanwhile, it takes that"""
BOOT_GRACE_S = 2.0
"""beyond its time, for a call that waits for the first instance: what that boot ends with says more than a time-out"""
_WEIGHT = 0.2
"""of the newest sample in the running means"""


class Owner(Protocol):
    """What a pool needs of the fleet it belongs to."""

    def want_boots(self, pool: "Pool") -> None:
        """The pool may be short of instances: give it its turn."""
        ...

    def stop(self, member: Member, reason: str) -> None:
        """Destroy an instance in the background; ends with :meth:`Pool.stopped`."""
        ...

    def watch_queue(self) -> None:
        """Somebody waits: look at the deadlines until nobody does."""
        ...


class Pool:
    """All instances of one pool key. ``snapshot`` is the newest with that key; settings outside the key come from it."""

    __slots__ = (
        "available",
        "boot_s",
        "booting",
        "boots",
        "calls",
        "ceiling",
        "context",
        "draining",
        "fading",
        "failure",
        "failures",
        "floor",
        "floor_until",
        "inflight",
        "key",
        "last_used",
        "marks",
        "max_calls",
        "members",
        "owed",
        "owner",
        "pace",
        "progress_at",
        "retry_at",
        "service_s",
        "snapshot",
        "stopping",
        "waiters",
        "waking",
        "warm",
        "warm_until",
    )

    def __init__(self, owner: Owner, snapshot: FunctionSnapshot, now: float) -> None:
        self.owner = owner
        self.key = snapshot.pool_key
        self.pace = Pace()
        self.waking: asyncio.TimerHandle | None = None
        """while calls wait although an instance is free"""
        self.adopt(snapshot)
        self.context = ContextEncoder(snapshot)
        self.available: list[Member] = []
        self.members: dict[str, Member] = {}
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
        self.booting = 0
        self.stopping = 0
        self.inflight = 0
        self.calls = 0
        self.boots = 0
        self.failures = 0
        self.failure: BootFailure | None = None
        self.retry_at = 0.0
        self.boot_s = 0.0
        self.service_s = 0.0
        self.progress_at = now
        self.last_used = now
        self.draining = False
        self.fading = False
        """it serves until its successor does, and boots nothing any more"""
        self.floor = 0
        self.floor_until = 0.0
        self.warm = 0
        self.warm_until = 0.0
        self.owed = 0
        """instances to give up, as their calls end, for a pool that has fewer"""
        self.marks = (0, now), (0, now)

    def adopt(self, snapshot: FunctionSnapshot) -> None:
        """Take over settings that lie outside the key; they act on the next call."""
        self.snapshot = snapshot
        self.max_calls = snapshot.max_calls
        self.ceiling = snapshot.capacity.max_inflight or UNPACED
        self.pace.allow(snapshot.concurrency == 1 and snapshot.capacity.max_queue_depth is None)

    # The warm path

    def take(self) -> Lease | None:
        """A free slot of the instance that was used last, or None."""
        available = self.available
        if not available or self.inflight >= self.ceiling or self.inflight >= self.pace.width:
            return None
        member = available[-1]
        member.inflight += 1
        self.inflight += 1
        if member.inflight == member.concurrency:
            available.pop()
        if self.max_calls:
            self._wear(member)
        return Lease(member)

    def released(self, member: Member, now: float, service_s: float) -> None:
        member.calls += 1
        member.last_used = self.last_used = self.progress_at = now
        self.calls += 1
        self.service_s += (service_s - self.service_s) * _WEIGHT if self.service_s else service_s
        self.pace.took(service_s)
        self._free(member)

    def _free(self, member: Member) -> None:
        """One slot of ``member`` has no call any more."""
        if self.owed and member.state is State.READY:
            self.owed -= 1
            self.retire(member, "reclaimed")
        if member.state is State.READY:
            if self.waiters and self.inflight <= self.pace.width and self._hand(member, None):
                return
            self._count_out(member)
            if member.inflight == member.concurrency - 1:
                self.available.append(member)
        else:
            self._count_out(member)
            if member.state is State.DRAINING and not member.inflight:
                self.discard(member, member.leaving)
                self.plan()

    def _wear(self, member: Member) -> None:
        """An instance that has begun its last call takes no other."""
        if member.calls + member.inflight >= self.max_calls and member.state is State.READY:
            self.retire(member, "max_calls")

    def retire(self, member: Member, reason: str) -> None:
        """Take no more calls on an instance, and stop it when those that it has are ended."""
        if not member.inflight:
            self.discard(member, reason)
        elif member.state is State.READY:
            if member in self.available:
                self.available.remove(member)
            member.state = State.DRAINING
            member.leaving = reason

    def _count_out(self, member: Member) -> None:
        member.inflight -= 1
        self.inflight -= 1
        if member.inflight < 0:
            raise RuntimeError(f"{member.instance.instance_id} has a negative number of calls")

    def _hand(self, member: Member, boot: BootTimes | None) -> bool:
        """Give an occupied slot to the oldest waiter; False when nobody waits any more."""
        while self.waiters:
            waiter, _ = self.waiters.popitem(last=False)
            if not waiter.done:
                if self.max_calls:
                    self._wear(member)
                waiter.give(Lease(member, boot))
                return True
        return False

    # Ends other than a good one

    def returned_broken(self, member: Member, now: float, reason: str) -> None:
        member.calls += 1
        self.calls += 1
        self.last_used = self.progress_at = now
        self._count_out(member)
        self.discard(member, reason)
        self._admit()

    def abandoned(self, member: Member, boot: BootTimes | None, now: float) -> None:
        member.last_used = now
        if boot is not None and self.waiters and member.state is State.READY and self._hand(member, boot):
            return
        self._free(member)

    def lost(self, member: Member) -> None:
        """The channel broke. Calls in flight end by themselves and say why; the last of them takes the instance out."""
        if member.inflight and member.state is not State.STOPPING:
            if member in self.available:
                self.available.remove(member)
            member.state = State.DRAINING
        else:
            self.discard(member, "lost")

    def discard(self, member: Member, reason: str) -> None:
        """Take an instance out for good, whatever it is doing; calls on it end by its channel. Idempotent."""
        if member.state is State.STOPPING:
            return
        if member in self.available:
            self.available.remove(member)
        member.state = State.STOPPING
        del self.members[member.instance.instance_id]
        self.stopping += 1
        self.owner.stop(member, reason)

    def stopped(self) -> None:
        """A discarded instance is gone and its place free."""
        self.stopping -= 1
        self.plan()

    # The queue

    def join(self, now: float, deadline: float, refusal: str, max_depth: int) -> Waiter:
        """Queue up. Raises what a failed boot left behind, ``queue_full``, or :class:`PoolMoved`."""
        if self.draining:
            raise PoolMoved
        if self.failure is not None and now < self.retry_at and not self.members and not self.booting:
            raise self.failure.exception()
        if self.inflight + len(self.waiters) >= self.ceiling:
            raise self._shed("inflight_limit", f"{self.ceiling} calls are under way already")
        if len(self.waiters) >= max_depth:
            if not self.available or self.inflight < self.pace.width:
                raise self._shed("queue_full", f"{max_depth} calls are waiting already")
            self._hasten()
        if not self.waiters:
            self.progress_at = now
        waiter = Waiter(deadline, refusal)
        self.waiters[waiter] = None
        self.owner.watch_queue()
        if self.available:
            self._look_soon()
        elif self.shortfall(now):
            self.plan()
        return waiter

    def _look_soon(self, looks: int = 0) -> None:
        if self.waking is None:
            self.waking = asyncio.get_running_loop().call_later(PATIENCE_S / 2, self._look, self.calls, looks)

    def _look(self, calls: int, looks: int) -> None:
        """Whoever waits beside a free instance must not wait for a slow call. Looked at twice: the first time it may have been
        this process that stood still."""
        self.waking = None
        if not self.waiters or not self.available:
            return
        if self.calls != calls:
            self._look_soon()
        elif not looks:
            self._look_soon(1)
        else:
            self._hasten()

    def _hasten(self) -> None:
        self.pace.give_up()
        asyncio.get_running_loop().call_soon(self._admit)

    def _admit(self) -> None:
        """Free slots to those who wait."""
        while self.waiters:
            waiter = next(iter(self.waiters))
            if waiter.done:
                del self.waiters[waiter]
                continue
            lease = self.take()
            if lease is None:
                return
            del self.waiters[waiter]
            waiter.give(lease)

    def leave(self, waiter: Waiter, now: float) -> None:
        """The caller is gone. A slot that was already its own goes to the next."""
        self.waiters.pop(waiter, None)
        if (lease := waiter.lease) is not None:
            lease.abandon(now)

    def expire(self, now: float) -> None:
        """Refuse the waiters whose time is up."""
        grace = BOOT_GRACE_S if self.booting and not self.members else 0.0
        for waiter in list(self.waiters):
            if now < waiter.deadline + (grace if waiter.refusal == "queue_timeout" else 0.0):
                continue
            del self.waiters[waiter]
            if not waiter.done:
                waiter.turn_away(self._refusal(waiter.refusal))

    def _refusal(self, code: str) -> NovaError:
        if code == "timeout":
            return NovaError("timeout", "the caller's time was up before an instance was free")
        if not self.members and not self.booting:
            return self._shed("capacity", "this node has no room for another instance")
        return self._shed("queue_timeout", "no instance became free in time")

    def _shed(self, code: str, detail: str) -> NovaError:
        return NovaError(code, detail, retry_after_s=1, status=self.snapshot.capacity.shed_status_code)

    def refuse_all(self, make: "ExceptionFactory") -> None:
        """Every waiter gets an exception of its own."""
        waiters, self.waiters = self.waiters, OrderedDict()
        for waiter in waiters:
            if not waiter.done:
                waiter.turn_away(make())

    # The floor

    def keep(self, floor: int, until: float) -> None:
        """Have at least ``floor`` instances until then (monotonic), but never more than ``max_replicas``."""
        self.floor, self.floor_until = floor, until
        self.plan()

    def prewarm(self, instances: int, until: float) -> None:
        """The same for a while, beside that floor: the higher of the two counts."""
        self.warm, self.warm_until = instances, until
        self.plan()

    def kept(self, now: float) -> int:
        """How many instances are to stay although nobody calls."""
        if self.floor and now >= self.floor_until:
            self.floor = 0
        if self.warm and now >= self.warm_until:
            self.warm = 0
        return max(self.floor, self.warm)

    def mark(self, now: float) -> None:
        """Begin another stretch of time for :meth:`rate`."""
        self.marks = self.marks[1], (self.calls, now)

    def succeed(self, other: "Pool") -> None:
        """The calls that came to ``other`` come here now: they count for :meth:`rate`."""
        (first, first_at), (second, second_at) = other.marks
        self.marks = (first - other.calls, first_at), (second - other.calls, second_at)

    def rate(self, now: float) -> float:
        """Calls a second, since the mark before the last."""
        calls, since = self.marks[0]
        return (self.calls - calls) / max(now - since, 1.0)

    @property
    def serving(self) -> int:
        """Instances that take calls, or soon will."""
        return self.booting + sum(member.state is State.READY for member in self.members.values())

    # Boots

    @property
    def size(self) -> int:
        """Instances that exist, from the first moment of their boot to the last of their stop."""
        return len(self.members) + self.booting + self.stopping

    def plan(self) -> None:
        """Ask for a turn to boot if that could help anybody."""
        limit = self.snapshot.max_replicas
        if (self.waiters or self.floor or self.warm) and not self.draining and (not limit or self.size < limit):
            self.owner.want_boots(self)

    def shortfall(self, now: float) -> int:
        """How many boots to begin now: those that the queue needs beyond what will be free within one boot time, and those
        that are missing to the floor."""
        if self.draining or self.fading or now < self.retry_at or not (self.waiters or self.floor or self.warm):
            return 0
        boots = self.kept(now) - self.serving if self.floor or self.warm else 0
        if self.waiters:
            concurrency = self.snapshot.concurrency
            free = len(self.available)
            need = len(self.waiters) - (self.booting + free) * concurrency - self._expected_releases(now)
            boots = max(boots, math.ceil(need / concurrency))
        boots = max(0, boots)
        limit = self.snapshot.max_replicas
        return max(0, min(boots, limit - self.size)) if limit else boots

    def _expected_releases(self, now: float) -> int:
        """Slots that running calls will free within one boot time.

        The mean service time is corrected by what is seen: when nothing was released for longer than it promises, the
        calls that run now are slower than those before them.
        """
        if not self.inflight or not self.service_s:
            return 0
        service = max(self.service_s, (now - self.progress_at) * self.inflight)
        return int(self.inflight * self.boot_s / service)

    def boot_began(self) -> None:
        self.booting += 1
        self.boots += 1

    def boot_ended(self, member: Member, times: BootTimes, now: float) -> None:
        """A loaded instance is here: its slots go to the oldest waiters, the first of them as a cold start."""
        self.booting -= 1
        self.failures = 0
        self.failure = None
        self.retry_at = 0.0
        took = (times.instance_us + times.init_us) / 1e6
        self.boot_s += (took - self.boot_s) * _WEIGHT if self.boot_s else took
        self.progress_at = self.last_used = now
        self.members[member.instance.instance_id] = member
        if self.draining:
            self.discard(member, "drained")
            return
        boot: BootTimes | None = times
        while member.inflight < member.concurrency and member.state is State.READY:
            member.inflight += 1
            self.inflight += 1
            if not self._hand(member, boot):
                self._count_out(member)
                self.available.append(member)
                break
            boot = None
        self.plan()

    def boot_failed(self, failure: BootFailure, now: float) -> None:
        """The error reaches all who wait, unless running instances will serve them. Three in a row pause the boots."""
        self.booting -= 1
        self.failures += 1
        self.failure = failure
        self.last_used = now
        if self.failures >= FAILURES_BEFORE_BACKOFF:
            pause = min(MAX_BACKOFF_S, 2.0 ** (self.failures - FAILURES_BEFORE_BACKOFF))
            self.retry_at = max(self.retry_at, now + pause)
        if not self.members:
            self.refuse_all(failure.exception)
        self.plan()

    def boot_cancelled(self) -> None:
        """The fleet closes."""
        self.booting -= 1

    # The end of a pool

    def drain(self) -> None:
        """No new calls; those in flight finish; whoever waits is sent to the function's new pool, in order."""
        self.draining = True
        self.refuse_all(PoolMoved)
        self.available.clear()
        for member in list(self.members.values()):
            if member.inflight:
                member.state = State.DRAINING
            else:
                self.discard(member, "drained")

    @property
    def gone(self) -> bool:
        return not self.size and not self.waiters


class ExceptionFactory(Protocol):
    def __call__(self) -> Exception: ...
