"""The small records of a pool: an instance as the pool knows it, the lease on one of its slots, a call that waits."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from msgspec import Struct

from nova.domain.call import StartSource
from nova.domain.function import FunctionSnapshot
from nova.errors import FunctionError, NovaError
from nova.execution.backends.base import Instance

if TYPE_CHECKING:
    from nova.execution.pool import Pool


class State(StrEnum):
    READY = "ready"
    """takes calls; idle or busy, as its slots say"""
    DRAINING = "draining"
    """finishes the calls it has and takes no more"""
    STOPPING = "stopping"
    """being destroyed; it counts until it is gone"""


@dataclass(frozen=True, slots=True)
class BootTimes:
    """What it took to make an instance, in microseconds: the isolated place, then the user's code."""

    source: StartSource
    instance_us: int
    init_us: int
    stdout: str = ""
    stderr: str = ""
    import_us: int = 0
    """the part of ``init_us`` in which the language imported the code"""
    runtime_us: int = 0
    """the part of ``instance_us`` in which agent and language started"""


class Member:
    """One instance of a pool. Only its pool changes it."""

    __slots__ = (
        "calls",
        "concurrency",
        "inflight",
        "instance",
        "last_used",
        "leaving",
        "pool",
        "rested",
        "started",
        "state",
    )

    def __init__(self, pool: "Pool", instance: Instance, concurrency: int, now: float) -> None:
        self.pool = pool
        self.instance = instance
        self.concurrency = concurrency
        self.state = State.READY
        self.inflight = 0
        self.calls = 0
        self.started = now
        self.last_used = now
        self.rested = -1
        """its calls when it was last let rest"""
        self.leaving = "drained"
        """why it is stopped once its calls have ended"""

    @property
    def label(self) -> str:
        """The state as people read it."""
        if self.state is State.READY:
            return "busy" if self.inflight else "ready"
        return str(self.state)


class Lease(Struct, eq=False):
    """The right to one call on one instance. It must be given back exactly once: a second time is a bug and raises.

    ``boot`` is set for the first call of an instance that was made while the call waited: that call started cold.
    """

    member: Member
    boot: BootTimes | None = None
    open: bool = True

    def release(self, now: float, service_s: float) -> None:
        """The call ended and its instance is well. ``service_s`` is how long the call held the slot."""
        self._close()
        self.member.pool.released(self.member, now, service_s)

    def retire(self, now: float, reason: str) -> None:
        """The call ended and its instance must not be used again."""
        self._close()
        self.member.pool.returned_broken(self.member, now, reason)

    def abandon(self, now: float) -> None:
        """The slot was never used: whoever waited for it is gone."""
        self._close()
        self.member.pool.abandoned(self.member, self.boot, now)

    def _close(self) -> None:
        if not self.open:
            raise RuntimeError(f"the lease on {self.member.instance.instance_id} was given back twice")
        self.open = False


class Waiter(Struct, eq=False):
    """A call in a pool's queue. ``refusal`` is the error it meets when ``deadline`` (monotonic) passes.

    Who cannot await :attr:`future` sets :attr:`taken`, which is told the lease at once, inside the pool, and
    :attr:`refused`, which is told soon after.
    """

    deadline: float
    refusal: str
    taken: Callable[[Lease], None] | None = None
    refused: Callable[[Exception], None] | None = None
    _told: bool = False
    _future: "asyncio.Future[Lease] | None" = None

    @property
    def future(self) -> "asyncio.Future[Lease]":
        """The lease to be, for whoever waits for it in a coroutine."""
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        return self._future

    @property
    def done(self) -> bool:
        """Nobody waits here any more."""
        return self._told or (self._future is not None and self._future.done())

    @property
    def lease(self) -> Lease | None:
        """What a coroutine was given and has perhaps not seen yet."""
        future = self._future
        if future is None or not future.done() or future.cancelled() or future.exception() is not None:
            return None
        return future.result()

    def give(self, lease: Lease) -> None:
        """The slot is its own. Only for one that still waits."""
        self._told = True
        if self.taken is None:
            self.future.set_result(lease)
        else:
            self.taken(lease)

    def turn_away(self, exc: Exception) -> None:
        """There will be no slot. Only for one that still waits."""
        self._told = True
        if self.refused is None:
            self.future.set_exception(exc)
        else:
            asyncio.get_running_loop().call_soon(self.refused, exc)


class PoolMoved(Exception):
    """The pool drains: its function changed. Whoever waited resolves the function anew."""


class LoadFailed(Exception):
    """The user's code could not be loaded; what the caller gets as the function's error."""

    def __init__(self, snapshot: FunctionSnapshot, error: FunctionError, instance_id: str, times: BootTimes) -> None:
        super().__init__(error.type)
        self.snapshot = snapshot
        self.error = error
        self.instance_id = instance_id
        self.times = times


@dataclass(frozen=True, slots=True)
class BootFailure:
    """Why a boot failed, kept to tell everybody who waited and, during a back-off, everybody who comes."""

    cause: NovaError | LoadFailed

    def exception(self) -> Exception:
        """A fresh exception for one caller: sharing one would pile up the tracebacks of all."""
        cause = self.cause
        if isinstance(cause, LoadFailed):
            return LoadFailed(cause.snapshot, cause.error, cause.instance_id, cause.times)
        return NovaError(
            cause.code, cause.detail, errors=cause.errors, extra=cause.extra, retry_after_s=cause.retry_after_s
        )
