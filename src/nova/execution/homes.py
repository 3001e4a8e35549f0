"""A processor of its own for each worker of a crowded server.

Where as many workers as processors are busy with calls that are over in a moment, the scheduler moves daemons and instances
about, and most of what a call costs is waking others on another processor. So each worker then keeps to one processor, with
the instances of those functions: a sixth more calls. Only while every worker is as busy: one that has more to do than the
others needs what they leave free. Everything else, slower functions, builds, threads, goes where there is room.
"""

import mmap
import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Final, Protocol

import structlog

from nova.clock import SYSTEM_CLOCK, Clock
from nova.execution.backends.base import Movable
from nova.execution.demand import Demand
from nova.execution.processes import children, descendants, threads
from nova.service import Background

log = structlog.get_logger(__name__)
TICK_S: Final = 0.5
SETTLE_AT: Final = 0.7
LEAVE_AT: Final = 0.4
"""Shares of the time in which the main thread of each worker runs or waits to run."""


class Demands:
    """How busy each worker is, in memory that all share. Made by the supervisor before it forks."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._shares = memoryview(mmap.mmap(-1, 8 * count)).cast("d")

    def tell(self, worker: int, share: float) -> None:
        self._shares[worker] = share

    @property
    def least(self) -> float:
        return min(self._shares)


class Busy(Protocol):
    def quick_and_spread(self) -> Collection[object]:
        """Running instances of functions that all workers serve and whose calls are over in a moment."""
        ...


class Home:
    """A service. Of use only where there are as many workers as processors (:meth:`fits`)."""

    def __init__(
        self, worker: int, demands: Demands, busy: Busy, *, clock: Clock = SYSTEM_CLOCK, demand: Demand | None = None
    ) -> None:
        self._worker = worker
        self._demands = demands
        self._busy = busy
        self._clock = clock
        self._demand = demand or Demand(clock)
        self._everywhere = os.sched_getaffinity(0)
        self._home = {sorted(self._everywhere)[worker]}
        self._here: dict[int, Movable] = {}
        self.settled = False
        self._tasks = Background("home")

    @staticmethod
    def fits(demands: Demands) -> bool:
        return 1 < demands.count == len(os.sched_getaffinity(0))

    async def start(self) -> None:
        self._tasks.spawn("watch", self._watch())

    async def close(self) -> None:
        await self._tasks.close()
        self._demands.tell(self._worker, 0.0)

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(TICK_S)
            self.look()

    def look(self) -> None:
        """Settle, stay or leave."""
        self._demands.tell(self._worker, self._demand.share())
        instances = [each for each in self._busy.quick_and_spread() if isinstance(each, Movable)]
        wanted = bool(instances) and self._demands.least >= (LEAVE_AT if self.settled else SETTLE_AT)
        held = os.sched_getaffinity(0)
        if held != (self._home if self.settled else self._everywhere):  # somebody else decides where this process runs
            self.settled = False
            self._move((), held)
            return
        if wanted != self.settled:
            self.settled = wanted
            os.sched_setaffinity(0, self._home if wanted else self._everywhere)
            log.debug("keeps to one processor" if wanted else "goes where there is room", processor=min(self._home))
        if wanted:
            self._free_others()
        self._move(instances if wanted else (), self._everywhere)

    def _move(self, instances: Iterable[Movable], elsewhere: Collection[int]) -> None:
        """These are here from now on, and no others."""
        here = {id(instance): instance for instance in instances}
        for known, instance in self._here.items():
            if known not in here:
                instance.keep_to(elsewhere)
        for instance in here.values():
            instance.keep_to(self._home)  # each time: their processes may be others now
        self._here = here

    def _free_others(self) -> None:
        """Threads and processes that were begun meanwhile came here with the thread that began them."""
        own = os.getpid()
        for thread in threads(own):
            if thread != own:
                self._free(thread)
        for child in children(own):
            if self._free(child):
                for process in descendants(child):
                    for thread in threads(process):
                        self._free(thread)

    def _free(self, thread: int) -> bool:
        with suppress(OSError):
            if os.sched_getaffinity(thread) == self._home:
                os.sched_setaffinity(thread, self._everywhere)
                return True
        return False
