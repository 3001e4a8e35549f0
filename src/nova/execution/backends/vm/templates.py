"""Machines that were booted for nobody and kept, one for each shape: a function's cold start goes on from one.

They are made in the background when a shape was asked for, one at a time, and while no instance is being booted. Who asks
meanwhile boots.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Final

import structlog

from nova.clock import SYSTEM_CLOCK, Clock
from nova.errors import NovaError
from nova.execution.backends.base import InstanceSpec, SnapshotRefused
from nova.execution.backends.vm.shape import Shape
from nova.execution.backends.vm.snapshots import Kept, KeptMachines
from nova.service import to_its_end

log = structlog.get_logger(__name__)

AGAIN_S: Final = 300.0
"""A shape whose template could not be made, or was of no use, is let alone for so long."""
YIELD_S: Final = 60.0
"""How long making one waits for instances that are being booted."""
MEMORY_MOST_MB: Final = 2048
"""A machine with more memory always boots: writing its template would cost more than it saves."""
WAITING_MOST: Final = 32
"""Shapes whose templates are still to be made; whoever wants more is not heard until some are."""

Make = Callable[[str, InstanceSpec], Awaitable[None]]


class TemplateShelf:
    """Those of one backend. Call :meth:`close` before what they are made with is closed."""

    def __init__(self, backend: str, kept: KeptMachines, make: Make, clock: Clock = SYSTEM_CLOCK) -> None:
        """``make`` boots a machine of a spec's shape and keeps it under a key."""
        self._backend = backend
        self._kept = kept
        self._make = make
        self._clock = clock
        self._wanted: dict[str, InstanceSpec] = {}
        """by key, in the order in which they are made"""
        self._not_before: dict[str, float] = {}
        self._booting = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._working: asyncio.Task[None] | None = None
        self._closed = False

    async def find(self, spec: InstanceSpec, fingerprint: str) -> Kept | None:
        """One that was made with the same; None when there is none yet."""
        return await asyncio.to_thread(self._kept.find, key_of(spec), fingerprint)

    def want(self, spec: InstanceSpec) -> None:
        """Have one made for machines of this shape. Returns at once."""
        key = key_of(spec)
        if Shape.of(spec).memory_mb > MEMORY_MOST_MB:
            return
        if self._closed or key in self._wanted or len(self._wanted) >= WAITING_MOST:
            return
        if self._clock.monotonic() < self._not_before.get(key, 0.0):
            return
        self._wanted[key] = spec
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work(), name=f"{self._backend}.templates")

    async def useless(self, spec: InstanceSpec) -> None:
        """The template of this shape did not go on: it goes, and is not made again at once."""
        self._put_off(key_of(spec))
        await to_its_end(partial(self._kept.drop, key_of(spec)))

    @contextlib.contextmanager
    def booting(self) -> Iterator[None]:
        """An instance is booted meanwhile, for somebody who waits."""
        self._booting += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._booting -= 1
            if not self._booting:
                self._idle.set()

    async def close(self) -> None:
        """What is being made is taken back, and all that was made goes."""
        self._closed = True
        if self._working is not None:
            self._working.cancel()
            await asyncio.wait({self._working})
        await to_its_end(self._kept.close)

    async def _work(self) -> None:
        while self._wanted:
            key, spec = next(iter(self._wanted.items()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(YIELD_S):
                    await self._idle.wait()
            try:
                await self._make(key, spec)
            except (NovaError, SnapshotRefused) as error:
                self._put_off(key)
                log.warning("no template could be made; instances boot", backend=self._backend, reason=str(error))
            except Exception:
                self._put_off(key)
                log.exception("no template could be made; instances boot", backend=self._backend)
            finally:
                del self._wanted[key]

    def _put_off(self, key: str) -> None:
        self._not_before[key] = self._clock.monotonic() + AGAIN_S


def key_of(spec: InstanceSpec) -> str:
    return repr(Shape.of(spec))
