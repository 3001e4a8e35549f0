"""Provisioned windows: the times at which a function has instances ready, written as cron expressions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from heapq import merge
from itertools import islice

from nova.domain import cron
from nova.domain.function import Window

ANCHOR = datetime(2000, 1, 1, tzinfo=UTC)
"""Where the intervals of ``@every`` are counted from: windows belong to no moment of creation."""


@dataclass(frozen=True, slots=True, order=True)
class Opening:
    """One window as it falls in time."""

    begins_at: datetime
    ends_at: datetime
    replicas: int
    name: str = ""


def replicas_at(windows: Sequence[Window], now: datetime) -> int:
    """What the windows that are open want; of several, the most. 0 when none is open."""
    return max((window.replicas for window in windows if opened(window, now) is not None), default=0)


def opened(window: Window, now: datetime) -> datetime | None:
    """When the window that is open now began, the newest of several; None when it is closed.

    A window's end does not belong to it. Its length is real time: a change of the zone's clock inside does not alter it.
    """
    times = cron.parse(window.cron, window.time_zone, anchor=ANCHOR)
    return cron.last_between(times, now - timedelta(seconds=window.duration_s), now)


def upcoming(windows: Sequence[Window], now: datetime, count: int) -> list[Opening]:
    """The next ``count`` openings of all windows together, those that are open now first."""
    return list(islice(merge(*(_openings(window, now) for window in windows)), count))


def _openings(window: Window, now: datetime) -> Iterator[Opening]:
    times = cron.parse(window.cron, window.time_zone, anchor=ANCHOR)
    length = timedelta(seconds=window.duration_s)
    for begins in cron.between(times, now - length, None):
        yield Opening(begins, begins + length, window.replicas, window.name)
