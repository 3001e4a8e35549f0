"""Answers about numbers over time, made of roll-ups: no record is read, so the cost does not grow with the calls."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

from nova.api.series import MAX_POINTS, Bucket, Heatmap, HeatmapDay, HeatmapQuery, SeriesQuery, TimeSeries
from nova.api.table import Empty
from nova.clock import Clock
from nova.config import RetentionSettings
from nova.domain.identity import Scope
from nova.domain.names import is_name
from nova.errors import invalid, not_found
from nova.http.handler import Req, handles
from nova.security import access
from nova.store.series import NAMESPACE, LocalHour, Point, SeriesStore

_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_P95 = 0.95


class SeriesHandlers:
    """``retention`` says how far back the series reach."""

    def __init__(self, store: SeriesStore, retention: RetentionSettings, clock: Clock) -> None:
        self._store = store
        self._retention = retention
        self._clock = clock

    @handles("metrics.timeseries")
    async def timeseries(self, req: Req[Empty, SeriesQuery]) -> TimeSeries:
        query = req.query
        access.require(req.identity, "metrics:read", query.function)
        span, step = _span(query.range), _span(query.step)
        self._check(span, step)
        function_id = await self._subject(req.scope, query.function)
        now = self._clock.now()
        last = now - (now - _EPOCH) % step
        first = last - (-(-span // step) - 1) * step
        by_hours = not step % _HOUR
        found = await self._store.points(
            req.scope, function_id, first, last + step, step, "hour" if by_hours else "minute"
        )
        points = {point.ts: point for point in found}
        starts = (first + number * step for number in range((last - first) // step + 1))
        return TimeSeries(
            function=query.function,
            range=query.range,
            step=query.step,
            points=[_bucket(ts, points.get(ts)) for ts in starts],
        )

    @handles("metrics.heatmap")
    async def heatmap(self, req: Req[Empty, HeatmapQuery]) -> Heatmap:
        return await self._heatmap(req.scope, None, req.query)

    @handles("function.heatmap")
    async def function_heatmap(self, req: Req[Empty, HeatmapQuery]) -> Heatmap:
        return await self._heatmap(req.scope, req.params["name"], req.query)

    async def _heatmap(self, scope: Scope, function: str | None, query: HeatmapQuery) -> Heatmap:
        zone = _zone(query.timezone)
        function_id = await self._subject(scope, function)
        now = self._clock.now()
        today = now.astimezone(zone).date()
        begin = today - timedelta(weeks=query.weeks) + _DAY
        since = max(_midnight(begin, zone), now - timedelta(days=self._retention.metrics_hour_days))
        hours = await self._store.local_hours(scope, function_id, since, now + _HOUR, query.timezone)
        return Heatmap(
            function=function,
            timezone=query.timezone,
            kept_from=since.astimezone(zone).date(),
            days=list(_days(begin, today, hours)),
        )

    def _check(self, span: timedelta, step: timedelta) -> None:
        if step > span:
            raise invalid("step", "at most the range")
        if span > step * MAX_POINTS:
            raise invalid("step", f"the range has more than {MAX_POINTS} of these; take longer steps")
        hours = not step % _HOUR
        days = self._retention.metrics_hour_days if hours else self._retention.metrics_minute_days
        if span > timedelta(days=days):
            raise invalid("range", f"at most {days}d, which is how long {'hours' if hours else 'minutes'} are kept")

    async def _subject(self, scope: Scope, function: str | None) -> UUID:
        if function is None:
            return NAMESPACE
        found = await self._store.function_id(scope, function) if is_name(function) else None
        if found is None:
            raise not_found("function", function)
        return found


def _span(text: str) -> timedelta:
    return int(text[:-1]) * _UNITS[text[-1]]


def _bucket(ts: datetime, point: Point | None) -> Bucket:
    if point is None:
        return Bucket(ts=ts, invocations=0, errors=0, cold_starts=0, avg_duration_ms=None, p95_duration_ms=None)
    return Bucket(
        ts=ts,
        invocations=point.invocations,
        errors=point.errors,
        cold_starts=point.cold_starts,
        avg_duration_ms=point.average_ms,
        p95_duration_ms=point.percentile_ms(_P95),
    )


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown, a path, a folder of zones
        raise invalid("timezone", "an IANA name such as Europe/Berlin") from None


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=zone)


def _days(begin: date, today: date, found: list[LocalHour]) -> Iterator[HeatmapDay]:
    by_day: dict[date, list[LocalHour]] = {}
    for hour in found:
        by_day.setdefault(hour.day, []).append(hour)
    for number in range((today - begin).days + 1):
        day = begin + number * _DAY
        counts = [0] * 24
        for hour in by_day.get(day, ()):
            counts[hour.hour] = hour.invocations
        errors = sum(hour.errors for hour in by_day.get(day, ()))
        yield HeatmapDay(date=day, invocations=sum(counts), errors=errors, hours=counts)
