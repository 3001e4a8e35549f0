"""What one kind of work is: who does it, how much of it at once, and when it is tried again."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nova.work.queue import WorkItem

GAP_S = 0.015
"""From a claim that found few items to the next, at least: a claim costs the same for one item as for many, so a lane that
gets a few now and then waits a moment for company. The first claim after a pause waits for nothing."""


class Room(asyncio.Event):
    """Set when there may be a place that was none before; whoever fills places is called then as well."""

    def __init__(self) -> None:
        super().__init__()
        self.fill: Callable[[], None] | None = None

    def set(self) -> None:
        super().set()
        if self.fill is not None:
            self.fill()


class WorkHandler(Protocol):
    """What one kind of work is. Every ending of the work is the handler's own transaction with ``queue.finish``."""

    async def run(self, item: WorkItem) -> None:
        """Do the work and finish it. May be cancelled when the lease is lost or the process stops.

        An exception means: try again later. :class:`LeaseLost` means: somebody else has it.
        """
        ...

    async def give_up(self, item: WorkItem, reason: str) -> None:
        """No attempt is left: write the noun's own failure and finish."""
        ...


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim got. ``more``: there may be more that is due."""

    items: Sequence[WorkItem]
    more: bool


Claim = Callable[[str, int, float], Awaitable[Claimed]]
"""Leases up to so many due items to an owner, for so many seconds."""

NextDue = Callable[[], Awaitable[float | None]]
"""Seconds until the next item that waits for its time; None: there is none."""

Begin = Callable[[WorkItem], "asyncio.Future[None] | None"]
"""Starts what :meth:`WorkHandler.run` does without a task, for its end to come to the future; cancelled, that stops the work.
None, and nothing has happened: there is something to wait for first."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How work of one kind is run here. ``backoff_s`` is about the first retry's delay; it doubles each time.

    ``concurrency`` as a callable is asked before each claim; whoever makes it grow meanwhile sets ``room``.
    ``max_attempts`` None: the handler counts for itself, and ``give_up`` is never called. ``claim`` and ``next_due`` replace
    the queue's own, which know nothing of the noun's table and indexes. ``begin`` is asked before the handler runs in a
    task. ``gap_s``: from a claim that found few items to the next, at least; short where somebody waits for each item.
    ``ahead``: items that may be handed over beyond that, to wait here for a moment.
    """

    handler: WorkHandler
    concurrency: int | Callable[[], int]
    per_tenant: int | None = None
    max_attempts: int | None = 3
    backoff_s: float = 1
    backoff_max_s: float = 60
    claim: Claim | None = None
    next_due: NextDue | None = None
    begin: Begin | None = None
    gap_s: float = GAP_S
    ahead: int = 0
    room: Room = field(default_factory=Room)

    @property
    def limit(self) -> int:
        return self.concurrency() if callable(self.concurrency) else self.concurrency
