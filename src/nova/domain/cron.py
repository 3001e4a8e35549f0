"""When a schedule is due: cron expressions, macros and intervals in a time zone, across changes of its clock.

Parsing and the search through the calendar are cronsim's. It is always asked in wall-clock time without a zone; what a wall
clock means is decided here, because expressions differ. Where seconds, minutes and hours are all given (``30 2 * * *``) a
time is *fixed*: one that the clock skips fires once, right after the gap, and one that it shows twice fires at the first.
Where one of them is a wildcard (``*/15 * * * *``) the expression means an interval and follows real time.
"""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import islice
from typing import Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

MAX_LENGTH = 256
"""Characters of an expression."""
MIN_INTERVAL = timedelta(seconds=1)
MAX_INTERVAL = timedelta(days=366)
MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS = ("second", "minute", "hour", "day of month", "month", "day of week")
_EVERY = re.compile(r"@every(?=\s|$)\s*(.*)", re.IGNORECASE)
_PREFIX = re.compile(r"CRON_TZ=(\S*)\s*")
_DURATION = re.compile(r"(?:\d+(?:\.\d{1,6})?(?:ms|s|m|h|d))+")
_PART = re.compile(r"(\d+(?:\.\d{1,6})?)(ms|s|m|h|d)")
_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*")
_TICK = timedelta(seconds=1)
_DAY = timedelta(days=1)
_LOOKBACK = (timedelta(minutes=1), timedelta(hours=1), timedelta(days=1))


class CronError(ValueError):
    """An expression that cannot be understood. ``position`` counts characters from 1."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"{message} (at character {position})")
        self.position = position


class Times(Protocol):
    """The instants of one expression in one zone, all in UTC."""

    def after(self, moment: datetime) -> datetime | None:
        """The first instant later than ``moment``; None when there is none for fifty years."""
        ...


def parse(expression: str, timezone: str = "UTC", *, anchor: datetime) -> Times:
    """What an expression means. ``anchor`` is where the intervals of ``@every`` are counted from.

    ``CRON_TZ=Zone`` before the expression stands above ``timezone``. Raises :class:`CronError`, or ValueError for a time
    zone that is not known.
    """
    every = _EVERY.fullmatch(expression.strip())
    if every is not None:
        check_zone(timezone)
        return Interval(_interval(every[1].strip(), expression), anchor)
    return _calendar(expression, timezone)


def preview(expression: str, timezone: str, count: int, after: datetime) -> list[datetime]:
    """The next ``count`` instants after a moment; fewer when there are no more."""
    return list(islice(between(parse(expression, timezone, anchor=after), after, None), count))


def between(times: Times, after: datetime, until: datetime | None) -> Iterator[datetime]:
    """Instants later than ``after`` and not later than ``until``, in order."""
    found = times.after(after)
    while found is not None and (until is None or found <= until):
        yield found
        found = times.after(found)


def last_between(times: Times, after: datetime, until: datetime) -> datetime | None:
    """The newest instant later than ``after`` and not later than ``until``. Looks back in steps, so that an expression with
    an instant each second is not walked through from the beginning."""
    for back in (*_LOOKBACK, until - after):
        start = max(after, until - back)
        if newest := deque(between(times, start, until), maxlen=1):
            return newest[0]
        if start == after:
            break
    return None


@lru_cache(1024)
def check_zone(name: str) -> tzinfo:
    """A time zone by its IANA name. Raises ValueError."""
    if name == "UTC":
        return UTC
    try:
        if _ZONE.fullmatch(name) is None or len(name) > 64:
            raise ValueError(name)
        return ZoneInfo(name)
    except (ValueError, KeyError, OSError):
        raise ValueError(f"{name[:64]!r} is not a time zone such as Europe/Berlin") from None


@dataclass(frozen=True, slots=True)
class Interval:
    """``@every``: whole steps from an anchor on."""

    step: timedelta
    anchor: datetime

    def after(self, moment: datetime) -> datetime | None:
        try:
            return self.anchor + ((moment - self.anchor) // self.step + 1) * self.step
        except OverflowError:
            return None


@dataclass(frozen=True, slots=True)
class Calendar:
    """Six cron fields in a zone."""

    fields: str
    zone: tzinfo
    fixed: bool

    def after(self, moment: datetime) -> datetime | None:
        try:
            return self._fixed_after(moment) if self.fixed else self._real_after(moment)
        except (StopIteration, OverflowError):
            return None

    def _fixed_after(self, moment: datetime) -> datetime:
        wall_clock = CronSim(self.fields, _wall(moment, self.zone))
        while True:
            found = _instant(next(wall_clock), self.zone)
            if found > moment:
                return found

    def _real_after(self, moment: datetime) -> datetime:
        """Between two changes of the clock wall time runs evenly, so each such stretch is searched with its own offset."""
        begin, wall = moment, _wall(moment, self.zone)
        while True:
            offset = _offset(begin, self.zone)
            found = (next(CronSim(self.fields, wall)) - offset).replace(tzinfo=UTC)
            change = _change(begin, found, self.zone)
            if change is None:
                return found
            begin, wall = change, _wall(change, self.zone) - _TICK


@lru_cache(16_384)
def _calendar(expression: str, timezone: str) -> Calendar:
    if len(expression) > MAX_LENGTH:
        raise CronError(f"at most {MAX_LENGTH} characters", MAX_LENGTH + 1)
    text = expression
    prefix = _PREFIX.match(expression.lstrip())
    if prefix is not None:
        start = len(expression) - len(expression.lstrip())
        try:
            check_zone(prefix[1])
        except ValueError as exc:
            raise CronError(f"CRON_TZ: {exc}", start + len("CRON_TZ=") + 1) from None
        timezone = prefix[1]
        text = " " * (start + prefix.end()) + expression.lstrip()[prefix.end() :]
    zone = check_zone(timezone)
    if text.lstrip().startswith("@"):
        text = _macro(text)
    fields = _checked_fields(text)
    seconds, minutes, hours = fields.split()[:3]
    fixed = not any(field.startswith("*") for field in (seconds, minutes, hours))
    return Calendar(fields, zone, fixed)


def _macro(text: str) -> str:
    position = len(text) - len(text.lstrip()) + 1
    name = text.strip().lower()
    if name not in MACROS:
        hint = (
            "CRON_TZ does not go with @every" if name.startswith("@every ") else f"one of {', '.join(MACROS)}, @every"
        )
        raise CronError(f"{text.strip()[:32]!r} is not known: {hint}", position)
    return MACROS[name]


def _checked_fields(text: str) -> str:
    """Six fields in one line. Each term is asked about alone, so that a mistake has a place."""
    found = [(match.start(), match[0]) for match in re.finditer(r"\S+", text)]
    if len(found) not in (5, 6):
        raise CronError(f"5 fields are expected, or 6 with leading seconds, not {len(found)}", len(text.rstrip()) or 1)
    fields = [field for _, field in found]
    names = _FIELDS[-len(fields) :]
    for index, (start, field) in enumerate(found):
        place = index + 6 - len(fields)
        position = start + 1
        for term in field.split(","):
            if not _accepted(" ".join(term if i == place else "*" for i in range(6))):
                raise CronError(f"{names[index]}: {term[:32]!r} is not valid", position)
            position += len(term) + 1
    if len(fields) == 5:
        fields.insert(0, "0")
    six = " ".join(fields)
    if not _accepted(six):
        raise CronError("no month has such a day", found[-3][0] + 1)
    return six


def _accepted(six: str) -> bool:
    try:
        CronSim(six, datetime(2000, 1, 1))
    except CronSimError:
        return False
    return True


def _interval(text: str, expression: str) -> timedelta:
    position = expression.find(text) + 1 if text else len(expression) + 1
    if not _DURATION.fullmatch(text) or len(text) > 64:
        raise CronError(f"{text[:32]!r} is not a duration such as 90s or 1h30m", position)
    try:
        step = sum((float(number) * _UNITS[unit] for number, unit in _PART.findall(text)), timedelta())
    except OverflowError:
        step = timedelta.max
    if not MIN_INTERVAL <= step <= MAX_INTERVAL:
        raise CronError("an interval is at least 1s and at most 366d", position)
    return step


def _offset(moment: datetime, zone: tzinfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _wall(moment: datetime, zone: tzinfo) -> datetime:
    """What the wall clock shows, without a zone."""
    return moment.astimezone(zone).replace(tzinfo=None)


def _instant(wall: datetime, zone: tzinfo) -> datetime:
    """When the wall clock shows this first; for a time that it skips, the end of the gap."""
    before = wall.replace(tzinfo=zone).astimezone(UTC)
    if _wall(before, zone) == wall:
        return before
    after = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    return _change(after, before, zone) or before


def _change(begin: datetime, end: datetime, zone: tzinfo) -> datetime | None:
    """The first instant later than ``begin`` and not later than ``end`` from which the zone has another offset.

    Whole seconds. Two changes on one day that cancel each other are not seen.
    """
    if zone is UTC:
        return None
    offset = _offset(begin, zone)
    low = begin.replace(microsecond=0)
    while low < end:
        high = min(low + _DAY, end)
        if _offset(high, zone) != offset:
            while high - low > _TICK:
                middle = low + (high - low) // 2
                middle = middle.replace(microsecond=0)
                if middle == low:
                    break
                if _offset(middle, zone) == offset:
                    low = middle
                else:
                    high = middle
            return high
        low = high
    return None
