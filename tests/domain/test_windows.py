"""When provisioned windows are open, across the days on which clocks change."""

from datetime import UTC, datetime, timedelta

import pytest

from nova.domain.function import Window
from nova.domain.windows import opened, replicas_at, upcoming

MORNING = Window("0 8 * * 1-5", 3600, 4, "Europe/Berlin", "morning")
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)  # a Monday


def test_a_window_is_open_from_its_instant_until_its_length_is_over() -> None:
    begins = datetime(2026, 11, 23, 7, tzinfo=UTC)
    assert [replicas_at([MORNING], begins + timedelta(seconds=s)) for s in (-1, 0, 3599, 3600)] == [0, 4, 4, 0]


def test_of_overlapping_windows_the_largest_counts() -> None:
    rush = Window("30 8 * * *", 600, 9, "Europe/Berlin")
    begins = datetime(2026, 11, 23, 7, 30, tzinfo=UTC)
    assert [replicas_at([MORNING, rush], begins + timedelta(minutes=m)) for m in (-1, 0, 9, 10, 30)] == [4, 9, 9, 4, 0]


@pytest.mark.parametrize(
    ("day", "opens"),
    [(28, "2026-03-28T01:30:00+00:00"), (29, "2026-03-29T01:00:00+00:00"), (30, "2026-03-30T00:30:00+00:00")],
)
def test_a_window_in_the_gap_of_spring_opens_right_after_it(day: int, opens: str) -> None:
    """02:30 does not exist in Berlin on the 29th of March 2026; the window lasts its hour all the same."""
    night = Window("30 2 * * *", 3600, 1, "Europe/Berlin")
    begins = datetime.fromisoformat(opens)
    assert opened(night, begins) == begins
    assert opened(night, begins + timedelta(minutes=59)) == begins
    assert opened(night, begins + timedelta(minutes=60)) is None


def test_the_hour_that_autumn_shows_twice_opens_once() -> None:
    night = Window("30 2 * * *", 600, 1, "Europe/Berlin")
    openings = upcoming([night], datetime(2026, 10, 24, 12, tzinfo=UTC), 2)
    assert [o.begins_at.isoformat() for o in openings] == ["2026-10-25T00:30:00+00:00", "2026-10-26T01:30:00+00:00"]


def test_the_next_openings_of_all_windows_by_time() -> None:
    often = Window("@every 6h", 7200, 1, name="often")
    found = upcoming([MORNING, often], NOON, 4)
    assert [(o.name, o.begins_at.hour) for o in found] == [("often", 12), ("often", 18), ("often", 0), ("often", 6)]
    assert all(o.ends_at - o.begins_at == timedelta(hours=2) for o in found)
    assert upcoming([], NOON, 4) == []
