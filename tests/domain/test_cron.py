"""Expressions, and what they mean where the clock changes."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from nova.domain import cron

SPRING = datetime(2026, 3, 28, 12, tzinfo=UTC)


def shown(expression: str, zone: str, after: datetime, count: int) -> list[str]:
    """Instants as the zone's wall clock shows them, with its offset."""
    there = cron.check_zone(zone)
    return [f"{t.astimezone(there):%d %H:%M:%S %z}" for t in cron.preview(expression, zone, count, after)]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("*/15 * * * *", ["28 12:15:00", "28 12:30:00"]),
        ("30 5 1,15 APR *", ["01 05:30:00", "15 05:30:00"]),
        ("*/20 30 12 * * *", ["28 12:30:00", "28 12:30:20"]),
        ("0 0 L * *", ["31 00:00:00", "30 00:00:00"]),
        ("0 0 * * FRI#2", ["10 00:00:00", "08 00:00:00"]),
        ("0 0 * * 1L", ["30 00:00:00", "27 00:00:00"]),
        ("0 9-17/4 * * MON-FRI", ["30 09:00:00", "30 13:00:00"]),
        ("@hourly", ["28 13:00:00", "28 14:00:00"]),
        ("@daily", ["29 00:00:00", "30 00:00:00"]),
        ("@midnight", ["29 00:00:00", "30 00:00:00"]),
        ("@weekly", ["29 00:00:00", "05 00:00:00"]),
        ("@monthly", ["01 00:00:00", "01 00:00:00"]),
        ("@yearly", ["01 00:00:00", "01 00:00:00"]),
        ("@every 1h30m", ["28 13:30:00", "28 15:00:00"]),
        ("@every 1s", ["28 12:00:01", "28 12:00:02"]),
        ("CRON_TZ=Asia/Tokyo 0 0 * * *", ["28 15:00:00", "29 15:00:00"]),
        ("CRON_TZ=Asia/Tokyo @daily", ["28 15:00:00", "29 15:00:00"]),
    ],
)
def test_every_form_of_expression(expression: str, expected: list[str]) -> None:
    assert shown(expression, "UTC", SPRING, 2) == [f"{moment} +0000" for moment in expected]


def test_day_of_month_and_day_of_week_both_given_mean_either() -> None:
    found = cron.preview("0 0 13 * 5", "UTC", 4, datetime(2026, 4, 1, tzinfo=UTC))
    assert [t.day for t in found] == [3, 10, 13, 17]


def test_a_fixed_time_in_the_gap_fires_once_right_after_it() -> None:
    for expression in ("30 2 * * *", "0 30 2 * * *", "0,30 2 * * *"):
        assert shown(expression, "Europe/Berlin", SPRING, 1) == ["29 03:00:00 +0200"]
    assert shown("30 2 * * *", "Europe/Berlin", SPRING, 2)[1] == "30 02:30:00 +0200"
    assert shown("0,30 2 * * *", "Europe/Berlin", SPRING, 2)[1] == "30 02:00:00 +0200"
    assert shown("15 2 * * *", "America/New_York", datetime(2026, 3, 7, 12, tzinfo=UTC), 2) == [
        "08 03:00:00 -0400",
        "09 02:15:00 -0400",
    ]
    # half an hour only: 02:00 becomes 02:30
    assert shown("15 2 * * *", "Australia/Lord_Howe", datetime(2026, 10, 3, 3, tzinfo=UTC), 2) == [
        "04 02:30:00 +1100",
        "05 02:15:00 +1100",
    ]


def test_a_fixed_time_in_the_repeated_hour_fires_once() -> None:
    assert shown("30 2 * * *", "Europe/Berlin", datetime(2026, 10, 24, 12, tzinfo=UTC), 2) == [
        "25 02:30:00 +0200",
        "26 02:30:00 +0100",
    ]
    # asked in the middle of the second pass of that hour
    assert shown("30 2 * * *", "Europe/Berlin", datetime(2026, 10, 25, 1, 10, tzinfo=UTC), 1) == ["26 02:30:00 +0100"]
    assert shown("30 1 * * *", "America/New_York", datetime(2026, 10, 31, 12, tzinfo=UTC), 2) == [
        "01 01:30:00 -0400",
        "02 01:30:00 -0500",
    ]
    assert shown("45 1 * * *", "Australia/Lord_Howe", datetime(2026, 4, 4, 3, tzinfo=UTC), 2) == [
        "05 01:45:00 +1100",
        "06 01:45:00 +1030",
    ]


@pytest.mark.parametrize(
    ("zone", "begin"),
    [
        ("Europe/Berlin", datetime(2026, 3, 29, tzinfo=UTC)),
        ("Europe/Berlin", datetime(2026, 10, 25, tzinfo=UTC)),
        ("America/New_York", datetime(2026, 3, 8, 5, tzinfo=UTC)),
        ("America/New_York", datetime(2026, 11, 1, 4, tzinfo=UTC)),
        ("Australia/Lord_Howe", datetime(2026, 10, 3, 14, 30, tzinfo=UTC)),
        ("Australia/Lord_Howe", datetime(2026, 4, 4, 13, tzinfo=UTC)),
    ],
)
def test_intervals_follow_real_time_through_a_change(zone: str, begin: datetime) -> None:
    found = cron.preview("*/10 * * * *", zone, 18, begin)
    assert found == [begin + timedelta(minutes=10 * (n + 1)) for n in range(18)]


def test_wildcard_hours_after_a_half_hour_change() -> None:
    found = shown("0 */3 * * *", "Australia/Lord_Howe", datetime(2026, 10, 3, 12, tzinfo=UTC), 3)
    assert found == ["04 00:00:00 +1030", "04 03:00:00 +1100", "04 06:00:00 +1100"]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
@pytest.mark.parametrize("expression", ["30 2 * * *", "*/20 * * * *", "0 */5 * * *", "7 1,2,3 * * *", "* * 2 * * SUN"])
def test_instants_only_grow_and_do_not_depend_on_where_one_begins(zone: str, expression: str) -> None:
    for begin in (datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 10, 24, 12, tzinfo=UTC)):
        times = cron.parse(expression, zone, anchor=begin)
        found = cron.preview(expression, zone, 60, begin)
        assert all(a < b for a, b in itertools.pairwise(found))
        for before, following in itertools.pairwise(found):
            halfway = before + (following - before) / 2
            assert times.after(halfway) == following
            assert times.after(following - timedelta(microseconds=1)) == following


@pytest.mark.parametrize(
    ("expression", "position", "says"),
    [
        ("61 * * * *", 1, "minute: '61'"),
        ("* 25 * * *", 3, "hour: '25'"),
        ("0 1,2,x * * *", 7, "hour: 'x'"),
        ("*  *  *  *  MOO", 13, "day of week: 'MOO'"),
        ("61 * * * * *", 1, "second: '61'"),
        ("CRON_TZ=Europe/Berlin 0 99 * * *", 25, "hour: '99'"),
        ("CRON_TZ=Mars/Base 0 0 * * *", 9, "'Mars/Base' is not a time zone"),
        ("* * * *", 7, "5 fields are expected"),
        ("0 0 30 2 *", 5, "no month has such a day"),
        ("@often", 1, "'@often' is not known"),
        ("@every", 7, "not a duration"),
        ("@every 0.5s", 8, "at least 1s"),
        ("@every 999999d", 8, "at most 366d"),
        ("0 0 ² * *", 5, "day of month"),
        ("* " * 200, 257, "at most 256"),
    ],
)
def test_mistakes_have_a_place(expression: str, position: int, says: str) -> None:
    with pytest.raises(cron.CronError, match=f"at character {position}") as refused:
        cron.parse(expression, anchor=SPRING)
    assert refused.value.position == position
    assert says in str(refused.value)


@pytest.mark.parametrize("zone", ["Europe", "../etc/passwd", "", "/etc/localtime", "Europe/Nowhere", "x" * 100])
def test_unknown_zones_are_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="not a time zone"):
        cron.parse("@daily", zone, anchor=SPRING)


def test_an_expression_that_never_comes_is_known_to_be_over() -> None:
    assert cron.parse("0 0 29 2 *", anchor=SPRING).after(datetime(9998, 1, 1, tzinfo=UTC)) is None
    assert cron.parse("@every 366d", anchor=SPRING).after(datetime(9999, 12, 1, tzinfo=UTC)) is None


def test_the_newest_instant_of_a_span_is_found_from_its_end() -> None:
    day = timedelta(days=1)
    for expression in ("* * * * * *", "*/5 * * * *", "0 3 * * *", "0 0 1 * *"):
        times = cron.parse(expression, "Europe/Berlin", anchor=SPRING)
        newest = cron.last_between(times, SPRING - 40 * day, SPRING)
        assert newest is not None
        assert newest <= SPRING < (times.after(newest) or SPRING)
        assert cron.last_between(times, newest, newest) is None
