"""What is due of a schedule at a moment: pure decisions, made from its record alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from nova.clock import rfc3339
from nova.domain import cron
from nova.store.schedules import ScheduleRecord, ScheduleSettings, Timing

GRACE = timedelta(seconds=10)
"""An instant that is late by no more than this fires as usual; a change of leaders takes half of it. One that is later has
been missed, and ``catch_up`` decides; unless the leader has been behind all that time, with more to fire than it can."""
MAX_AT_ONCE = 100
"""Instants of one schedule that are decided in one transaction; the others follow in the next."""
_JUST_BEFORE = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Instant:
    """One that fires now. ``catch_up``: it had been missed."""

    at: datetime
    catch_up: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done about a schedule. ``missed`` is the first of the instants that never fire, ``why`` they do not."""

    instants: Sequence[Instant]
    missed: datetime | None
    why: str
    timing: Timing


def times_of(settings: ScheduleSettings, anchor: datetime) -> cron.Times:
    """Raises ValueError (:class:`~nova.domain.cron.CronError`) for an expression or zone that is not understood."""
    return cron.parse(settings.cron_expression, settings.timezone, anchor=anchor)


def timing(schedule_id: str, settings: ScheduleSettings, anchor: datetime, after: datetime) -> Timing:
    """The first instant later than ``after``, inside the schedule's window. Raises ValueError."""
    times = times_of(settings, anchor)
    if not settings.enabled:
        return Timing(anchor, None, None)
    if settings.start_at is not None:
        after = max(after, settings.start_at - _JUST_BEFORE)
    found = times.after(after)
    if found is None or (settings.end_at is not None and found > settings.end_at):
        return Timing(anchor, None, None)
    return Timing(anchor, found, found + jitter(schedule_id, settings.jitter_s, found))


def jitter(schedule_id: str, jitter_s: int, instant: datetime) -> timedelta:
    """From 0 up to ``jitter_s`` seconds; the same for one instant of one schedule, whoever asks."""
    if not jitter_s:
        return timedelta()
    digest = hashlib.sha256(f"{schedule_id}/{rfc3339(instant)}".encode()).digest()
    return timedelta(seconds=jitter_s * int.from_bytes(digest[:8], "big") / 2**64)


def plan(schedule: ScheduleRecord, now: datetime, behind: timedelta = timedelta()) -> Plan:
    """What is due at ``now`` of a schedule whose ``due_at`` has come. Raises ValueError.

    ``behind``: for how long the leader has been firing without a pause.
    """
    settings, first = schedule.settings, schedule.next_run_at
    if first is None:
        return Plan((), None, "", Timing(schedule.anchor, None, None))
    missed_until = now - behind - GRACE - timedelta(seconds=settings.jitter_s)
    if first > missed_until:
        return _on_time(schedule, now, first - _JUST_BEFORE)
    if settings.catch_up == "all":
        return _all_missed(schedule, now, first, missed_until)
    fresh = _on_time(schedule, now, missed_until)
    why = f"nothing fired until {rfc3339(now)}"
    if settings.catch_up == "none" or fresh.instants:
        return Plan(fresh.instants, first, why, fresh.timing)
    window = max(first, now - timedelta(seconds=settings.catch_up_window_s)) - _JUST_BEFORE
    newest = cron.last_between(times_of(settings, schedule.anchor), window, _end(settings, missed_until))
    if newest is None:
        return Plan((), first, f"{why}; catch_up_window_s was over", fresh.timing)
    return Plan([Instant(newest, catch_up=True)], first if first < newest else None, why, fresh.timing)


def _on_time(schedule: ScheduleRecord, now: datetime, after: datetime) -> Plan:
    """The instants later than ``after`` whose time, with jitter, has come."""
    due: list[Instant] = []
    while len(due) < MAX_AT_ONCE:
        step = timing(schedule.id, schedule.settings, schedule.anchor, after)
        if step.next_run_at is None or step.due_at is None or step.due_at > now:
            return Plan(due, None, "", step)
        due.append(Instant(step.next_run_at))
        after = step.next_run_at
    return Plan(due, None, "", timing(schedule.id, schedule.settings, schedule.anchor, after))


def _all_missed(schedule: ScheduleRecord, now: datetime, first: datetime, missed_until: datetime) -> Plan:
    """Every missed instant within the window, oldest first, as many as go at once."""
    settings = schedule.settings
    window = max(first, now - timedelta(seconds=settings.catch_up_window_s)) - _JUST_BEFORE
    times = times_of(settings, schedule.anchor)
    found = list(islice(cron.between(times, window, _end(settings, missed_until)), MAX_AT_ONCE))
    skipped = first if not found or first < found[0] else None
    after = found[-1] if len(found) == MAX_AT_ONCE else missed_until
    return Plan(
        [Instant(at, catch_up=True) for at in found],
        skipped,
        "older than catch_up_window_s",
        timing(schedule.id, settings, schedule.anchor, after),
    )


def _end(settings: ScheduleSettings, until: datetime) -> datetime:
    return until if settings.end_at is None else min(until, settings.end_at)
